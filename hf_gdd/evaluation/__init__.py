"""Measure the worth of distilled images by accuracy and by image quality."""

from hf_gdd.utils.lazy import lazy_names

# `evaluate` is a function of the top package: here the name is that of its module.
__getattr__, __dir__ = lazy_names(
    __name__,
    evaluator="Evaluator",
    image_quality="FeatureEvaluator feature_evaluator",
    references="evaluate_references",
    evaluate="as_images baselines",
    metrics="class_diversity coverage_scores frechet_distance",
)
