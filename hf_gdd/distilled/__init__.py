"""Turn a generator into a data set, an endless stream, or a data set on the Hub."""

from hf_gdd.utils.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    stream="DistilledStream",
    builder="GenerativeDistilledDataset load_distilled_dataset write_parquet",
    push="push_distilled_dataset",
)
