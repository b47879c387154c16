"""Build, augment and train classifiers for evaluation, matching and teaching."""

from hf_gdd.utils.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    networks="NETWORK_NAMES build_network frozen network_name penultimate_features",
    augment="Augment cutmix",
    imagenet_augment="ImageNetAugment",
    recipes="RECIPES Recipe augmentation find_recipe",
    learner="Learner NonFiniteLossError accuracy iterate_epochs predict "
    "prediction_gap shuffled_batches softened_divergence",
    ensemble="ClassifierEnsemble can_stack stack_groups",
    teachers="Teachers",
    coresets="CORESETS coreset_features cut_coresets select_coreset",
)
