"""Measure what distilled images are worth: test accuracy of networks trained on them, and image quality."""

from hf_gdd.utils.lazy import lazy_names

# `evaluate` is a function of the top package: here the name is that of its module.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Evaluator": "evaluator",
        "FeatureEvaluator": "image_quality",
        "as_images": "evaluate",
        "baselines": "evaluate",
        "class_diversity": "metrics",
        "coverage_scores": "metrics",
        "feature_evaluator": "image_quality",
        "frechet_distance": "metrics",
    },
)
