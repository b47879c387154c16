"""Doing a piece of the evidence: it stops when time is up, goes on where it was, and writes down how it was made."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import provenance
import torch
from evidence import DATA, REAL, SIZES, VARIANTS, Piece
from filelock import FileLock, Timeout
from provenance import write
from results import report_of
from selection import features, selected

from hf_gdd import AutoGenerator, GlobalLocalTrainer, ImageTensors, Report, baselines, evaluate
from hf_gdd.classifiers.networks import network_name
from hf_gdd.generators.base import Generator
from hf_gdd.training.run_folder import stage_file

CALLS = ".calls.json"  # beside the folder of a piece


class OutOfTimeError(Exception):
    """The budget is spent in the middle of a piece, which goes on from here the next time."""


@dataclass(frozen=True)
class Bench:
    """Where data, runs and results are, and when to stop.

    Attributes:
        runs: what is on the way: runs, their checkpoints, generators, rows of unfinished judgements.
        results: one JSON for every finished piece.
        local: folders instead of Hub ids, by data set.
        deadline: in seconds of `time.monotonic`.

    """

    runs: Path
    results: Path
    local: Mapping[str, str]
    deadline: float

    def result(self, piece: Piece) -> Path:
        """Where a finished piece is written down."""
        return self.results / f"{piece.name}.json"

    def run(self, piece: Piece) -> None:
        """Do a piece, or go on with it, and write it down.

        Raises:
            OutOfTimeError: the budget was spent before its end.
            ValueError: other pieces were made of other data of this name, or of another generator.

        """
        started = time.monotonic()
        train, test, source = read(piece.data, self.place(piece.data), DATA[piece.data][1])
        data = {"source": source, "train": train.fingerprint, "test": test.fingerprint}
        self.require_same(piece.data, data)
        *earlier, last = provenance.calls(self.runs / f"{piece.name}{CALLS}")
        kinds = {"train": self.train, "judge": self.judge, "best5": self.judge, REAL: self.real}
        made = kinds.get(piece.kind, self.select)(piece)
        found = {"piece": asdict(piece) | {"networks": [str(network) for network in piece.networks]}} | last
        found |= {"earlier_calls": earlier, "seconds_of_last_call": time.monotonic() - started}
        write(self.result(piece), found | {"data": data, "caveats": provenance.caveats(train)} | made)

    def require_same(self, name: str, data: Mapping[str, str]) -> None:
        """Refuse data that other pieces were not made of."""
        for path in self.results.glob(f"*/{name}/*.json"):
            other = json.loads(path.read_text())["data"]
            if any(other[split] != data[split] for split in ("train", "test")):
                raise ValueError(f"{name} as it is in {self.place(name)} is not the data that {path} was made of.")

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Whether this program may do the piece of this name: no other is at it."""
        path = self.runs / "locks" / f"{name.replace('/', '-')}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def images(self, data: str) -> tuple[ImageTensors, ImageTensors]:
        """Training and test set."""
        return read(data, self.place(data), DATA[data][1])[:2]

    def place(self, data: str) -> str:
        """The folder or the Hub id of a data set."""
        name, _ = DATA[data]
        return self.local.get(name.split("/")[-1], name)

    def folder(self, piece: Piece) -> Path:
        """Of the run, or of the rows, of a piece."""
        return self.runs / piece.name

    def generator(self, piece: Piece) -> Path:
        """Where the generator lies that a training left, in half precision."""
        return self.folder(piece) / "half"

    def at_hand(self, piece: Piece) -> bool:
        """Whether what a piece needs of finished trainings lies here, too: their JSON may come from elsewhere."""
        if piece.kind != "train":
            return all(self.generator(need).exists() for need in piece.needs)
        starts = [self.folder(need) for need in piece.needs]
        begun = any((self.folder(piece) / "checkpoints").glob("step-*.pt"))
        return all((start / "run.yaml").exists() and (begun or stage_file(start, "gan").exists()) for start in starts)

    def train(self, piece: Piece) -> dict[str, Any]:
        """Train, and keep the generator in half precision."""
        size, variant, images = SIZES[piece.size], VARIANTS[piece.variant], self.images(piece.data)[0]
        settings = {"seed": piece.seed, "image_size": DATA[piece.data][1]}
        if variant.start:  # save where the pool is to draw a fresh network: such a state is small enough to travel
            settings["checkpoint_every"] = GlobalLocalTrainer.configure(size.training["preset"]).refresh(len(images))
        settings |= size.settings(variant)
        if variant.start:
            settings["start_from"] = str(self.folder(piece.needs[0]))
        trainer = GlobalLocalTrainer(images, output_dir=self.folder(piece), **settings)
        with self.stopped_in_time():
            generator = trainer.fit()
        generator.half().save_pretrained(self.generator(piece))
        identity = trainer.identity()
        identity["config"]["start_from"] = variant.start
        told = {"run": identity, "steps": trainer.state.global_step, "seconds": trainer.state.seconds}
        told |= {"images_per_second": self.speed(piece), "arithmetic": trainer.arithmetic.state_dict()}
        told |= {"fingerprint": generator.fingerprint, "handed_over": self.handed_over(piece)}
        return told | {"start_handed_over": [step for start in piece.needs for step in self.handed_over(start)]}

    def speed(self, piece: Piece) -> float | None:
        """Images a second, as the run logged it last."""
        lines = (self.folder(piece) / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1]).get("images_per_second") if lines else None

    def handed_over(self, piece: Piece) -> list[int]:
        """The steps after which the state went to another machine, moments in half precision."""
        path = self.folder(piece) / "handed_over.json"
        return json.loads(path.read_text()) if path.is_file() else []

    @contextmanager
    def stopped_in_time(self) -> Iterator[None]:
        """Ask a training to save and stop when the budget is spent, or stop what comes before it and after it.

        Raises:
            OutOfTimeError: it was stopped so.

        """
        spent = threading.Event()

        def stop() -> None:
            spent.set()
            os.kill(os.getpid(), signal.SIGTERM)

        def before_or_after(signum: int, frame: Any) -> None:
            if spent.is_set():
                raise OutOfTimeError
            signal.signal(signum, previous)
            signal.raise_signal(signum)

        previous = signal.signal(signal.SIGTERM, before_or_after)
        timer = threading.Timer(min(max(1.0, self.deadline - time.monotonic()), threading.TIMEOUT_MAX), stop)
        timer.daemon = True
        timer.start()
        try:
            yield
        except KeyboardInterrupt as stopped:
            if spent.is_set():
                raise OutOfTimeError from stopped
            raise
        finally:
            timer.cancel()
            try:
                timer.join()  # a signal that is on its way finds this handler still
            finally:
                signal.signal(signal.SIGTERM, previous)

    def judge(self, piece: Piece) -> dict[str, Any]:
        """Train networks on the images of a generator, loaded again from half precision; row by row."""
        generator = self.made(piece.needs[0])
        train, test = self.images(piece.data)
        options = self.options(piece) | {"real": train, "name": piece.variant, "with_baselines": False}
        return self.rows(
            piece,
            {
                f"ipc{ipc}-{protocol}": lambda ipc=ipc, protocol=protocol: evaluate(
                    generator, test, ipc=ipc, protocol=protocol, **options
                )
                for ipc in piece.ipcs
                for protocol in piece.protocols
            },
            generator.fingerprint,
        )

    def made(self, training: Piece) -> Generator:
        """The generator of a finished training.

        Raises:
            ValueError: what lies here is another one.

        """
        generator = AutoGenerator.from_pretrained(self.generator(training), device=device())
        if generator.fingerprint != json.loads(self.result(training).read_text())["fingerprint"]:
            raise ValueError(
                f"{self.generator(training)} is not the generator that {self.result(training)} tells of: delete the "
                "first and take the right one over, or delete the second and it is written anew from the run here."
            )
        return generator

    def real(self, piece: Piece) -> dict[str, Any]:
        """Random real images, and all of them."""
        train, test = self.images(piece.data)

        def row(*ipcs: int) -> Report:
            options = self.options(piece) | {"full_data": not ipcs, "device": device()}
            return baselines(train, test, ipcs=ipcs, **options)

        return self.rows(piece, {f"ipc{ipc}": lambda ipc=ipc: row(ipc) for ipc in piece.ipcs} | {"all": row})

    def select(self, piece: Piece) -> dict[str, Any]:
        """Real images selected by a rule, in the features of a network that learned from all of them."""
        train, test = self.images(piece.data)
        size = SIZES[piece.size]

        @cache
        def chosen() -> list[torch.Tensor]:
            seen = features(size.network, train, size.recipe)
            return selected(piece.kind, seen, train.labels, max(piece.ipcs))

        def row(ipc: int) -> Report:
            rows = torch.cat([rows[:ipc] for rows in chosen()])
            images, labels = train.gather(rows)
            data = ImageTensors(
                images, labels, train.class_names, f"{train.source} [{piece.kind}]", images.device, train.license
            )
            return evaluate(data, test, real=train, name=piece.kind, with_baselines=False, **self.options(piece))

        return self.rows(piece, {f"ipc{ipc}": lambda ipc=ipc: row(ipc) for ipc in piece.ipcs})

    def keep(self, judge: Piece, folder: Path) -> Path:
        """Leave the generator of a finished judgement in `folder`, with its card, its rows and the baselines.

        Raises:
            ValueError: the judgement is of another one, or was made under other circumstances than the baselines.

        """
        generator = self.made(judge.needs[0])
        pieces = (Piece(judge.size, judge.data, REAL), judge)
        real, judged = (report_of(piece, json.loads(self.result(piece).read_text())) for piece in pieces)
        if {row.generator for row in judged.results} != {generator.fingerprint}:
            raise ValueError(f"{self.result(judge)} is of another generator than {self.generator(judge.needs[0])}.")
        generator.report = Report.merge([real, judged])
        generator.save_pretrained(folder / judge.card, repo_id=f"{folder.name}/{judge.card}")
        return folder / judge.card

    def options(self, piece: Piece) -> dict[str, Any]:
        """How networks are trained."""
        size = SIZES[piece.size]
        networks, recipe = piece.networks or (size.network,), size.judged_by(piece.data)
        return {"networks": networks, "n": size.n, "recipe": recipe, "seed": 0, "shared_draws": size.shared_draws}

    def rows(
        self, piece: Piece, made: Mapping[str, Callable[[], Report]], generator: str | None = None
    ) -> dict[str, Any]:
        """One report of several, each of which is kept as soon as it is made, and made anew if its like is not.

        Raises:
            OutOfTimeError: the budget is spent before the last one.

        """
        by = self.circumstances(piece) | {"generator": generator}
        reports = []
        for name, make in made.items():
            path = self.folder(piece) / f"{name}.json"
            kept = json.loads(path.read_text()) if path.is_file() else {}
            if kept.get("by") != by:
                if time.monotonic() > self.deadline:
                    raise OutOfTimeError
                kept = {"by": by, "report": asdict(make())}
                write(path, kept)
            reports.append(Report.from_dict(kept["report"]))
        return {"report": asdict(Report.merge(reports))}

    def circumstances(self, piece: Piece) -> dict[str, Any]:
        """What the rows of one report must have in common."""
        now, options = provenance.now(), self.options(piece)
        options |= {"networks": [network_name(each) for each in options["networks"]]}
        options |= {"recipe": asdict(options["recipe"])}
        data = [images.fingerprint for images in self.images(piece.data)]
        told = {"device": now["device"], "versions": now["versions"], "options": options, "data": data}
        return json.loads(json.dumps(told))  # as it is read again


@cache
def read(data: str, place: str, size: int | None) -> tuple[ImageTensors, ImageTensors, str]:
    """Training and test set, of one name wherever they come from, so that runs may travel; and where that is."""
    train, test = (ImageTensors.from_dataset(place, split, image_size=size) for split in ("train", "test"))
    return replace(train, source=f"{data}:train"), replace(test, source=f"{data}:test"), train.source


def device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
