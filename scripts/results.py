"""What the pieces of the evidence have come to, as tables and figures ask for it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evidence import SIZES, VARIANTS, Piece, queue

from hf_gdd import GlobalLocalTrainer
from hf_gdd.classifiers.networks import network_name
from hf_gdd.report import Report, Result

OF_PIECE = ("seed", "image_size", "start_from")  # of a training, rather than of its size
TITLES = {"fashion_mnist": "Fashion-MNIST", "mnist": "MNIST", "cifar10": "CIFAR-10"}


@dataclass(frozen=True)
class Found:
    """What one size has come to.

    Attributes:
        size: its name.
        pieces: of the queue, with what each left; None for what was not run.

    """

    size: str
    pieces: Mapping[Piece, dict[str, Any] | None]

    @property
    def done(self) -> list[dict[str, Any]]:
        """What finished pieces left."""
        return [made for made in self.pieces.values() if made]

    def results(self, data: str, name: str, protocol: str, ipc: int | None, network: str | None = None) -> list[Result]:
        """Rows of one cell, one for each generator."""
        network = network or network_name(SIZES[self.size].network)
        wanted = {"protocol": protocol, "ipc": ipc, "network": network}
        reports = [
            made["report"] for piece, made in self.pieces.items() if made and piece.data == data and "report" in made
        ]
        return [row for report in reports for row in report.find(name, **wanted)]


def load(results: Path, size: str) -> Found:
    """All that there is of a size.

    Raises:
        ValueError: pieces of one data set were made of different data, or one with other settings than the size has.

    """

    def read(piece: Piece) -> dict[str, Any] | None:
        path = results / f"{piece.name}.json"
        if not path.is_file():
            return None
        made = json.loads(path.read_text())
        return made | {"report": report_of(piece, made)} if "report" in made else made

    found, data = Found(size, {piece: read(piece) for piece in queue(size)}), {}
    for piece, made in found.pieces.items():
        if made:
            images = {split: made["data"][split] for split in ("train", "test")}
            if data.setdefault(piece.data, images) != images:
                raise ValueError(f"{piece.name} was made of other data than the pieces of {piece.data} before it.")
            require_size(piece, made)
    return found


def report_of(piece: Piece, made: Mapping[str, Any]) -> Report:
    """What a judgement left, held against the floor of today: it says nothing of how rows were made."""
    report = Report.from_dict(made["report"])
    return replace(report, recipe=report.recipe | {"floor": SIZES[piece.size].judged_by(piece.data).floor})


def require_size(piece: Piece, made: Mapping[str, Any]) -> None:
    """Refuse what was made when its size was another.

    Raises:
        ValueError: it was trained or judged otherwise.

    """
    size = SIZES[piece.size]
    if "report" in made:
        report = made["report"]
        told = {"recipe": report.recipe, "shared_draws": report.shared_draws}
        told["n"] = sorted({len(row.accuracies) for row in report.results})
        told["networks"] = sorted({row.network for row in report.results})
        now = {"recipe": asdict(size.judged_by(piece.data)), "shared_draws": size.shared_draws, "n": [size.n]}
        now["networks"] = sorted(network_name(each) for each in piece.networks or (size.network,))
    else:
        now = GlobalLocalTrainer.configure(**size.settings(VARIANTS[piece.variant])).identity()
        now = {name: value for name, value in now.items() if name not in OF_PIECE and value != "auto"}
        told = made["run"]["config"]
    for name, value in json.loads(json.dumps(now)).items():  # as it is read back
        if told.get(name) != value:
            raise ValueError(
                f"{piece.name} was made with {name} {told.get(name)!r}, but size {piece.size} says {value!r}: delete "
                "its JSON, or give the size that setting back."
            )


def of_first_generator(rows: Sequence[Result]) -> list[Result]:
    """Rows of the generator of seed 0."""
    return [row for row in rows if not row.generator_seed]
