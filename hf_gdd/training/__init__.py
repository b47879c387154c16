"""One training loop for every method."""

from hf_gdd.utils.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Interrupted": "signals",
        "Processes": "distributed",
        "RunError": "errors",
        "RunFolder": "run_folder",
        "Stage": "config",
        "StartPoint": "start_point",
        "Trainer": "trainer",
        "TrainerState": "state",
        "TrainingConfig": "config",
    },
)
