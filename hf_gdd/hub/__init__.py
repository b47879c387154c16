"""Load generators from the Hugging Face Hub, push them, and write their cards."""

from hf_gdd.utils.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "LoadError": "files",
        "PushError": "upload",
        "dataset_card": "cards",
        "generator_card": "cards",
        "push": "upload",
        "resolve": "loading",
    },
)
