"""Load generators from the Hugging Face Hub, push them, and write their cards."""

from hf_gdd.utils.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__, files="LoadError", upload="PushError push", cards="dataset_card generator_card", loading="resolve"
)
