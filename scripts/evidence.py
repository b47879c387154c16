"""The papers' tables as pieces of work: which generators are trained, by what they are judged, and in what order."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from narrow import convnet3_narrow
from selection import SELECTIONS

from hf_gdd import GlobalLocalTrainer, Recipe
from hf_gdd.classifiers.networks import NetworkSpec

IPCS = (1, 10, 50)
PROTOCOLS, BEST_5 = ("fixed", "dynamic"), ("dynamic-best5-test",)
# Hub id, and the side that images are brought to; None for their own.
DATA: dict[str, tuple[str, int | None]] = {
    "fashion_mnist": ("zalando-datasets/fashion_mnist", None),
    "mnist": ("ylecun/mnist", None),
    "cifar10": ("uoft-cs/cifar10", None),
    "fashion_mnist-32": ("zalando-datasets/fashion_mnist", 32),
}


@dataclass(frozen=True)
class Variant:
    """A way to train a generator.

    Attributes:
        method: of `GlobalLocalTrainer`.
        start: the variant whose first stage it begins from, for the same seed; None if it trains its own.
        changes: settings other than the size's.
        factor: of the preset's local weight.

    """

    method: str
    start: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    factor: float = 1.0


def tuned(factor: float = 1.0, start: str = "cgan", **changes: Any) -> Variant:
    """Global-local from a trained GAN, with these changes."""
    return Variant("global-local", start, changes, factor)


POOL = ("convnet3", "resnet18-dd")
MINIMAX = {"adversarial": "minimax", "penalty_every": 1}  # which has no penalty to leave out
VARIANTS = {
    # Table 1: all from one GAN of each seed.
    "cgan": Variant("cgan"),
    "cgan-continued": Variant("cgan-continued", "cgan"),
    "dim": Variant("dim", "cgan"),
    "global-local": tuned(),
    # Table 2: the pool of its caption.
    "dim, two in pool": Variant("dim", "cgan", {"pool": POOL}),
    "global-local, two in pool": tuned(pool=POOL),
    # Figure 3: the local weight, times the preset's own.
    **{f"local x{factor:g}": tuned(factor) for factor in (0.1, 0.3, 3.0, 10.0)},
    # What decides our defaults.
    "local paired_mean": tuned(local_reduction="paired_mean"),
    "global logit_mean": tuned(global_reduction="logit_mean"),
    "untrained pool": tuned(inner_steps=0),
    "minimax cgan": Variant("cgan", changes=MINIMAX),
    "minimax": tuned(start="minimax cgan", **MINIMAX),
    "EMA .999 cgan": Variant("cgan", changes={"ema_decay": 0.999}),
    "EMA .999": tuned(start="EMA .999 cgan", ema_decay=0.999),
}
TABLE_1 = ("cgan", "cgan-continued", "dim", "global-local")
TABLE_2 = ("dim, two in pool", "global-local, two in pool")
FIGURE_3 = tuple(name for name in VARIANTS if name.startswith("local x"))
ABLATIONS = ("local paired_mean", "global logit_mean", "untrained pool", "minimax", "EMA .999")
TABLE_2_NETWORKS = ("convnet3", "resnet18-dd", "resnet18-dc", "alexnet", "vgg11")
REAL = "real"
KEPT = "global-local"


@dataclass(frozen=True)
class Size:
    """How large everything is: `paper` for a GPU, `lite` for two CPU cores.

    Attributes:
        training: settings of every training.
        steps: caps on the first and on the second stage; None for the preset's own lengths.
        network: what judges.
        recipe: by which it is trained, but for its floor.
        seeds: of the generators, by data set.
        floors: accuracy in [0, 1] that the recipe must reach with all data, by data set.
        n: networks of a row.
        shared_draws: whether they see the same batches, which a generator then makes once.

    """

    training: Mapping[str, Any]
    steps: tuple[int | None, int | None]
    network: NetworkSpec
    recipe: Recipe
    seeds: Mapping[str, tuple[int, ...]]
    floors: Mapping[str, float]
    n: int = 5
    shared_draws: bool = False

    def settings(self, variant: Variant) -> dict[str, Any]:
        """Of a training, but for its data and seed."""
        steps = {"method": variant.method, "max_steps": self.steps[variant.start is not None]}
        weight = GlobalLocalTrainer.configure(**self.training).local_weight * variant.factor
        return {**self.training, "local_weight": weight, **steps, **variant.changes}

    def judged_by(self, data: str) -> Recipe:
        """The recipe, with the floor of this data set."""
        return replace(self.recipe, floor=self.floors[data.removesuffix("-32")])


SIZES = {
    "paper": Size(
        training={"preset": "paper", "mixed_precision": "auto"},
        steps=(None, None),
        network="convnet3",
        recipe=Recipe(max_steps=20_000),  # which bounds all data alone: IPC 50 takes 8,000
        seeds={"fashion_mnist": (0, 1, 2), "mnist": (0, 1, 2), "cifar10": (0,)},
        floors={"fashion_mnist": 0.9, "mnist": 0.985, "cifar10": 0.78},
    ),
    "lite": Size(
        training={"preset": "lite", "penalty_every": 4, "checkpoint_every": 50},
        steps=(1500, 200),
        network=convnet3_narrow,
        recipe=Recipe(max_steps=400, lr=0.1, schedule="cosine"),
        seeds={"fashion_mnist": (0, 1, 2), "mnist": (0, 1, 2), "cifar10": (0,)},
        floors={"fashion_mnist": 0.8, "mnist": 0.8, "cifar10": 0.4},
        shared_draws=True,
    ),
}


@dataclass(frozen=True)
class Piece:
    """A part of the work that leaves one JSON: of a generator its training, then its judgement; or the baselines."""

    size: str
    data: str
    kind: str  # `train`, `judge`, `best5`, or a baseline: `real` or a selection
    variant: str | None = None
    seed: int = 0
    ipcs: tuple[int, ...] = ()
    protocols: tuple[str, ...] = ()
    networks: tuple[NetworkSpec, ...] = ()

    @property
    def name(self) -> str:
        """Of the piece and of its file."""
        variant = f"{slug(self.variant)}-seed{self.seed}-" if self.variant else ""
        return f"{self.size}/{self.data}/{variant}{self.kind}"

    @property
    def card(self) -> str:
        """Of the folder in which its generator is kept."""
        return f"{self.data}-{slug(self.variant)}-{self.size}"

    @property
    def needs(self) -> tuple["Piece", ...]:
        """The pieces that must be there before."""
        start = VARIANTS[self.variant].start if self.variant else None
        if self.kind in ("judge", "best5"):
            return (generator_of(self.size, self.data, self.variant, self.seed),)
        return (generator_of(self.size, self.data, start, self.seed),) if start else ()


def slug(name: str) -> str:
    """A name as a part of a path."""
    return name.replace(",", "").replace(" ", "-").lower()


def generator_of(size: str, data: str, variant: str, seed: int) -> Piece:
    """The training of one generator."""
    return Piece(size, data, "train", variant, seed)


def queue(size: str) -> list[Piece]:
    """All pieces in the order in which they are to be run: Table 1 seed by seed, its best of five tests, the rest."""
    found: dict[Piece, None] = {}

    def add(data: str, variants: tuple[str, ...], seed: int, **judged: Any) -> None:
        for variant in variants:
            if start := VARIANTS[variant].start:
                found[generator_of(size, data, start, seed)] = None
            found[generator_of(size, data, variant, seed)] = None
            found[Piece(size, data, "judge", variant, seed, **({"ipcs": IPCS, "protocols": PROTOCOLS} | judged))] = None

    generators = [(data, seed) for data, seeds in SIZES[size].seeds.items() for seed in seeds]
    generators.sort(key=lambda generator: generator[1])  # a table of one seed says more than half a table of three
    for data, seed in generators:
        for kind in (REAL, *SELECTIONS):
            found[Piece(size, data, kind, ipcs=IPCS)] = None
        add(data, TABLE_1, seed)
    for data, seed in generators:
        for variant in TABLE_1:
            found[Piece(size, data, "best5", variant, seed, IPCS, BEST_5)] = None
    if "fashion_mnist" in SIZES[size].seeds:
        add("fashion_mnist", FIGURE_3, 0, ipcs=(1,))
        add("fashion_mnist", ABLATIONS, 0, ipcs=(10,))
        add("fashion_mnist-32", ("cgan", "global-local"), 0, ipcs=(10,))
    if "cifar10" in SIZES[size].seeds:
        add("cifar10", TABLE_2, 0, ipcs=(10,), protocols=("dynamic",), networks=TABLE_2_NETWORKS)
    return list(found)


def kept(size: str) -> list[Piece]:
    """The judgements whose generators are kept with their cards."""
    first = [piece for piece in queue(size) if (piece.kind, piece.variant, piece.seed) == ("judge", KEPT, 0)]
    return [piece for piece in first if piece.data in SIZES[size].seeds]
