"""The training loop of every method: stages, metrics, checkpoints, exact resume."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from hf_gdd.classifiers.learner import NonFiniteLossError
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.generators.auto import AutoGenerator
from hf_gdd.generators.base import Generator
from hf_gdd.hub.loading import read_report
from hf_gdd.training.base import TrainerBase
from hf_gdd.training.errors import explain_failures
from hf_gdd.training.metrics_log import MetricsLog, non_finite_part
from hf_gdd.training.run_folder import stage_file
from hf_gdd.training.signals import Interrupted, stop_signals
from hf_gdd.training.state import BatchSampler, TrainerState
from hf_gdd.utils.io import save_state
from hf_gdd.utils.progress import progress_bar
from hf_gdd.utils.random import Random

logger = logging.getLogger("hf_gdd")


class Trainer(TrainerBase):
    """Distill a data set into a generator; the base class of every method.

    A method implements `stages`, `setup`, `step` and `to_generator`.

    Args:
        data: a `datasets` object (a `DatasetDict` gives its train split), a Hub id, a folder, or "digits".
        preset: name of a set of settings; `paper` if there is no config either.
        output_dir: folder of the run. A folder with the same run in it is resumed; with another, refused.
        config: all settings, instead of a preset.
        overrides: single settings.

    Raises:
        ValueError: anything about the data, the config or the folder that would make the run fail later.

    Example:
        trainer = GlobalLocalTrainer("digits", preset="tiny", output_dir="runs/digits")
        generator = trainer.fit()

        # Or, instead of fit, a loop of your own:
        trainer.open()
        while trainer.advance():
            print(trainer.state.global_step)
        trainer.save_checkpoint()
        trainer.close()

    """

    def fit(
        self,
        validate: Callable[[Generator, ImageTensors], float] | None = None,
        every: int | None = None,
        held_out: float = 0.1,
    ) -> Generator:
        """Train or resume, and save the generator to `<output_dir>/generator`.

        The folder is locked meanwhile, and released at the end, also after an error.

        Args:
            validate: scores a generator on held-out training images, higher is better; the best is returned rather
                than the last. Only then is a part of the training set held out.
            every: steps of the last stage between validations; only at its end if None.
            held_out: the part of every class that is held out for `validate`, between 0 and 1.

        Raises:
            NonFiniteLossError: a loss became infinite or not a number.
            RunError: no memory or disk space was left, or another process of the run is gone.
            Interrupted: SIGINT or SIGTERM came; the run can be resumed.
            LoadError: a pretrained model cannot be loaded.
            ValueError: the folder holds another run or is in use, or the run would fail later.

        """
        with explain_failures(self):
            try:
                self.open(held_out if validate else None)
                total, done = sum(stage.steps for stage in self.stages), self.state.global_step
                bar = progress_bar(self.processes.is_main, total=total, initial=done, unit="step")
                with bar as self.bar, stop_signals() as received:
                    while self.advance():
                        stage, last = self.stage, self.state.stage == len(self.stages) - 1
                        if validate and last and self._due(every or stage.steps):
                            self._select(validate)
                        signum = self.processes.agreed_stop(received, ask=self.log_this_step)
                        if signum or self._due(self.config.checkpoint_every):
                            self.save_checkpoint()
                        if signum:
                            raise Interrupted(signum, self.state.global_step, self.run.path)
                for tracker in self.accelerator.trackers:  # end_training would also end the group a next run needs
                    tracker.finish()
                return self._save(best=validate is not None)
            finally:
                self.close()

    def open(self, held_out: float | None = None) -> None:
        """Lock the folder, build everything, and restore the last checkpoint if any.

        `close` unlocks the folder; so does an error in here. Only `fit` explains failures of memory, disk and processes
        by a `RunError`.

        Args:
            held_out: part of every class to hold out for validation; None for none.

        Raises:
            LoadError: a pretrained model cannot be loaded.
            ValueError: the folder holds another run, is in use, or the run would fail later.

        """
        self.log = self.bar = None
        self.hold_out(held_out)
        self.run.check()
        self.check_processes()
        self.processes.on_main(self.run.lock)
        try:
            self._build()
            self.accelerator.init_trackers("hf_gdd", config={k: str(v) for k, v in asdict(self.config).items()})
            self.log = MetricsLog(self.run, self.processes.is_main, self.accelerator.log, self.processes.mean)
            self.log.resume(self.state.global_step, self.state.seconds)
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        checkpoint = self.run.last_checkpoint(self.device)
        start = None if checkpoint else self.start_point
        restored = start.load(self.run.identity, self.device) if start else {}
        self.random, self.state = Random(self.config.seed, self.device), TrainerState()
        self.batches = BatchSampler(len(self.data), self.random)
        self.tracked = {"random": self.random, "batches": self.batches, "state": self.state} | self.setup()
        self.processes.on_main(self.run.claim)
        if checkpoint:
            self.load_state_dict(checkpoint)
            logger.info("Resuming %s after step %d.", self.run.path, self.state.global_step)
            return
        for name in start.restored_parts & self.tracked.keys() if start else ():
            self.tracked[name].load_state_dict(restored[name])
        if self.stages:
            self.begin(self.stages[0])

    def advance(self) -> bool:
        """Take one step, log it, and save pictures when they are due.

        The end of a stage is saved, and the next one begun, before the step that follows.

        Returns:
            False if no step is left.

        """
        while self.stage and self.state.step >= self.stage.steps:
            self._finish_stage()
        if self.stage is None:
            return False
        started = time.perf_counter()
        indices = self.next_indices(self.stage)
        self.log_this_step = self._due(self.config.log_every, ahead=1)
        metrics = self.step(self.processes.local_part(indices) if self.stage.divided else indices)
        self.state.step += 1
        self.state.global_step += 1
        self.log.add(self.state.global_step, indices.numel(), metrics)
        if self.log_this_step:
            self.log.fetch()  # waits for the device, so that its time is counted
        self.state.seconds += time.perf_counter() - started
        if self.bar is not None:
            self.bar.set_description(f"{self.stage.name} ({self.state.stage + 1}/{len(self.stages)})", refresh=False)
            self.bar.update()
        if self.log_this_step:
            self._flush()
        if self._due(self.config.picture_every) and self.processes.is_main:
            self.save_pictures()
        return True

    def save_checkpoint(self) -> None:
        """Save everything that changes, so that the run can continue from here.

        Raises:
            NonFiniteLossError: a loss or a weight is not finite.

        """
        self._flush()  # which refuses to save what is not finite
        if part := non_finite_part(self.tracked, self.processes.mean):
            raise NonFiniteLossError(
                f"The weights of the {part} are not finite after step {self.state.global_step}. The last good "
                f"checkpoint is {self._last_good()}. Lower the learning rate, in a new output_dir."
            )
        state = self.state_dict()  # for which processes may need each other
        if self.processes.is_main:
            self.run.save_checkpoint(self.state.global_step, state, keep=self.config.keep_checkpoints)

    def close(self) -> None:
        """Release the folder for other processes."""
        if self.processes.is_main:
            self.run.unlock()

    def _due(self, every: int, ahead: int = 0) -> bool:
        step = self.state.step + ahead
        return step % every == 0 or step == self.stage.steps

    def _flush(self) -> None:
        stage = self.stage or self.stages[-1]
        try:
            record = self.log.flush(stage.name, self.state.seconds)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(
                f"{error} The last good checkpoint is {self._last_good()}. Lower the learning rate, or train without "
                "mixed precision, in a new output_dir."
            ) from error
        if self.bar is not None and record:
            shown = {name: value for name, value in record.items() if isinstance(value, float) and "/" not in name}
            shown["img/s"] = shown.pop("images_per_second")
            self.bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items() if name != "seconds"})

    def _last_good(self) -> Path | str:
        return self.run.newest_checkpoint() or "none: the run is too young"

    def _finish_stage(self) -> None:
        """Save the state at the end of a stage, and begin the next."""
        state = self.state_dict()
        if self.processes.is_main:
            save_state(stage_file(self.run.path, self.stage.name), state)
        self.state.stage, self.state.step = self.state.stage + 1, 0
        if self.stage:
            self.begin(self.stage)

    def _select(self, validate: Callable[[Generator, ImageTensors], float]) -> None:
        """Save the generator if it scores better than all before it."""
        generator = self.to_generator()
        score = float(validate(generator, self.held_out))
        logger.info("Validation after step %d: %.4f.", self.state.global_step, score)
        if self.state.best is None or score > self.state.best:
            self.state.best = score
            if self.processes.is_main:
                generator.save_pretrained(self.run.path / "best")

    def _save(self, best: bool) -> Generator:
        self.processes.wait()
        folder = self.run.path / "best"
        generator = AutoGenerator.from_pretrained(folder, device=self.device) if best else self.to_generator()
        generator = self.finish(generator)
        if self.processes.is_main:
            folder, fingerprint = self.run.path / "generator", generator.fingerprint
            report = read_report(folder)  # a run that is repeated must not lose its evaluation
            if report and any(result.generator == fingerprint for result in report.results):
                generator.report = report
            generator.save_pretrained(folder)
        self.processes.wait()
        return generator

    def save_pictures(self) -> None:
        """Save a grid of samples and the loss curves in the run's folder."""
        folder = self.run.path / "samples"
        folder.mkdir(exist_ok=True)
        self.picture().save(folder / f"step-{self.state.global_step:09d}.png")
        self.log.draw()
