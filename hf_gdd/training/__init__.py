"""One training loop for every method."""

from hf_gdd.utils.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    signals="Interrupted",
    distributed="Processes",
    errors="RunError",
    run_folder="RunFolder",
    config="Stage TrainingConfig",
    start_point="StartPoint",
    trainer="Trainer",
    state="TrainerState",
)
