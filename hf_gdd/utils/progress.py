"""Progress bars."""

from typing import Any

from tqdm.auto import tqdm


def progress_bar(shown: bool, **options: Any) -> tqdm:
    """Return a tqdm bar, hidden unless `shown`; TQDM_DISABLE hides a shown one too."""
    hidden = {} if shown else {"disable": True}  # disable=False would override TQDM_DISABLE
    return tqdm(dynamic_ncols=True, **hidden, **options)
