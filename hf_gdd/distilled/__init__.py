"""Turn a generator into a `datasets` data set, an endless stream, or a data set on the Hub."""

from hf_gdd.utils.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DistilledStream": "stream",
        "GenerativeDistilledDataset": "builder",
        "load_distilled_dataset": "builder",
        "push_distilled_dataset": "push",
        "write_parquet": "builder",
    },
)
