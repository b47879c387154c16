"""Build, augment and train classifiers for evaluation, matching and teaching."""

from hf_gdd.utils.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "NETWORK_NAMES": "networks",
        "build_network": "networks",
        "frozen": "networks",
        "network_name": "networks",
        "penultimate_features": "networks",
        "Augment": "augment",
        "cutmix": "augment",
        "ImageNetAugment": "imagenet_augment",
        "RECIPES": "recipes",
        "Recipe": "recipes",
        "augmentation": "recipes",
        "find_recipe": "recipes",
        "Learner": "learner",
        "NonFiniteLossError": "learner",
        "accuracy": "learner",
        "iterate_epochs": "learner",
        "predict": "learner",
        "prediction_gap": "learner",
        "shuffled_batches": "learner",
        "ClassifierEnsemble": "ensemble",
        "can_stack": "ensemble",
        "stack_groups": "ensemble",
        "Teachers": "teachers",
        "CORESETS": "coresets",
        "coreset_features": "coresets",
        "select_coreset": "coresets",
    },
)
