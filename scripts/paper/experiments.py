"""The tables of Li et al. (2024) as trainings and evaluations, in order."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hf_gdd import GlobalLocalTrainer, Recipe
from hf_gdd.classifiers.coresets import CORESETS
from hf_gdd.report import DYNAMIC, DYNAMIC_BEST5, FIXED

IPCS = (1, 10, 50)
PROTOCOLS = (FIXED, DYNAMIC)
# Hub id, and the side that images are resized to; None for their own.
DATA: dict[str, tuple[str, int | None]] = {
    "fashion_mnist": ("zalando-datasets/fashion_mnist", None),
    "mnist": ("ylecun/mnist", None),
    "cifar10": ("uoft-cs/cifar10", None),
    "fashion_mnist-32": ("zalando-datasets/fashion_mnist", 32),
}
TITLES = {"fashion_mnist": "Fashion-MNIST", "mnist": "MNIST", "cifar10": "CIFAR-10"}  # of Table 1
TRAIN, REAL = "train", "real"


@dataclass(frozen=True)
class Variant:
    """A way to train a generator, by default global-local from a trained GAN.

    Attributes:
        method: method of `GlobalLocalTrainer`.
        start: variant whose stage `gan` it starts from, with the same seed; None if it trains its own.
        changes: settings that differ from the size's.
        local_factor: factor on the preset's local weight.

    """

    method: str = "global-local"
    start: str | None = "cgan"
    changes: Mapping[str, Any] = field(default_factory=dict)
    local_factor: float = 1.0


POOL = {"pool": ("convnet3", "resnet18-dd")}
MINIMAX = {"adversarial": "minimax", "penalty_every": 1}  # which has no penalty to leave out
EMA = {"ema_decay": 0.999}
VARIANTS = {
    # Table 1: all from one GAN of each seed.
    "cgan": Variant("cgan", start=None),
    "cgan-continued": Variant("cgan-continued"),
    "dim": Variant("dim"),
    "global-local": Variant(),
    # Table 2: the pool of its caption.
    "dim, two in pool": Variant("dim", changes=POOL),
    "global-local, two in pool": Variant(changes=POOL),
    # Figure 3: the local weight, times the preset's own.
    **{f"local x{factor:g}": Variant(local_factor=factor) for factor in (0.1, 0.3, 3.0, 10.0)},
    # Ablations behind our defaults.
    "local paired_mean": Variant(changes={"local_reduction": "paired_mean"}),
    "global logit_mean": Variant(changes={"global_reduction": "logit_mean"}),
    "untrained pool": Variant(changes={"inner_steps": 0}),
    "minimax cgan": Variant("cgan", None, MINIMAX),
    "minimax": Variant(start="minimax cgan", changes=MINIMAX),
    "EMA .999 cgan": Variant("cgan", None, EMA),
    "EMA .999": Variant(start="EMA .999 cgan", changes=EMA),
}
TABLE_1 = ("cgan", "cgan-continued", "dim", "global-local")
TABLE_2 = ("dim, two in pool", "global-local, two in pool")
FIGURE_3 = tuple(name for name in VARIANTS if name.startswith("local x"))
ABLATIONS = ("local paired_mean", "global logit_mean", "untrained pool", "minimax", "EMA .999")
TABLE_2_NETWORKS = ("convnet3", "resnet18-dd", "resnet18-dc", "alexnet", "vgg11")


@dataclass(frozen=True)
class Size:
    """How large everything is: `paper` for a GPU, `lite` for two CPU cores.

    Attributes:
        training: settings of every training.
        steps: caps on the first and on the second stage; None for the preset's own lengths.
        network: architecture that evaluates.
        recipe: how it is trained, except for the floor.
        seeds: seeds of the generators, by data set.
        floors: accuracy in [0, 1] that the recipe must reach on full data, by data set.
        n: networks of a row.
        shared_draws: True if they see the same batches, which a generator then makes once.

    """

    training: Mapping[str, Any]
    steps: tuple[int | None, int | None]
    network: str
    recipe: Recipe
    seeds: Mapping[str, tuple[int, ...]]
    floors: Mapping[str, float]
    n: int = 5
    shared_draws: bool = False

    def settings(self, variant: Variant) -> dict[str, Any]:
        """Return the settings of a training, except for its data and seed."""
        steps = {"method": variant.method, "max_steps": self.steps[variant.start is not None]}
        weight = GlobalLocalTrainer.configure(**self.training).local_weight * variant.local_factor
        return {**self.training, "local_weight": weight, **steps, **variant.changes}

    def recipe_for(self, data: str) -> Recipe:
        """Return the recipe, with the floor of this data set."""
        return replace(self.recipe, floor=self.floors[data.removesuffix("-32")])


WITHOUT_CODES = {"codes_ipc": 0, "teacher_network": None}  # they are measured by codes.py
SEEDS = {"fashion_mnist": (0, 1, 2), "mnist": (0, 1, 2), "cifar10": (0,)}
SIZES = {
    "paper": Size(
        training={"preset": "paper"},
        steps=(None, None),
        network="convnet3",
        recipe=Recipe(max_steps=20_000),  # which bounds full data alone: IPC 50 takes 8,000
        seeds=SEEDS,
        floors={"fashion_mnist": 0.9, "mnist": 0.985, "cifar10": 0.78},
    ),
    "lite": Size(
        training={"preset": "lite", "penalty_every": 4, "checkpoint_every": 50} | WITHOUT_CODES,
        steps=(1500, 200),
        network="convnet3_narrow",
        recipe=Recipe(max_steps=400, lr=0.1, schedule="cosine"),
        seeds=SEEDS,
        floors={"fashion_mnist": 0.8, "mnist": 0.8, "cifar10": 0.4},
        shared_draws=True,
    ),
}


@dataclass(frozen=True)
class Experiment:
    """A piece of work that leaves one JSON.

    It is a training, the evaluation of its generator, or baselines.

    Attributes:
        size: name in `SIZES`.
        data: name in `DATA`.
        kind: `train`, `judge` (evaluate), `best5` (the same with the best of five tests), `real`, or a coreset rule.
        variant: name in `VARIANTS`; None for baselines.
        seed: seed of the generator.
        ipcs: images per class to evaluate.
        protocols: protocols to evaluate under.
        networks: architectures that evaluate; the size's if empty.

    """

    size: str
    data: str
    kind: str
    variant: str | None = None
    seed: int = 0
    ipcs: tuple[int, ...] = ()
    protocols: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the experiment, and path of its JSON without the suffix."""
        variant = f"{slug(self.variant)}-seed{self.seed}-" if self.variant else ""
        return f"{self.size}/{self.data}/{variant}{self.kind}"

    @property
    def card(self) -> str:
        """Folder name of its generator in model_cards."""
        return f"{self.data}-{slug(self.variant)}-{self.size}"

    @property
    def needs(self) -> tuple["Experiment", ...]:
        """Training that must be finished before, if there is one."""
        variant = VARIANTS[self.variant].start if self.kind == TRAIN else self.variant
        return (Experiment(self.size, self.data, TRAIN, variant, self.seed),) if variant else ()


def slug(name: str) -> str:
    """Turn a name into a part of a path."""
    return name.replace(",", "").replace(" ", "-").lower()


def experiments(size: str) -> list[Experiment]:
    """Return all experiments in order.

    Table 1 comes first, seed by seed, then its best of five tests, then the rest.
    """
    ordered, seeds = [], SIZES[size].seeds

    def add(data: str, variants: tuple[str, ...], seed: int = 0, **evaluation: Any) -> None:
        for variant in variants:
            options = {"ipcs": IPCS, "protocols": PROTOCOLS} | evaluation
            judge = Experiment(size, data, "judge", variant, seed, **options)
            (training,) = judge.needs
            ordered.extend((*training.needs, training, judge))

    # A table of one seed says more than half a table of three.
    generators = sorted(((data, seed) for data in seeds for seed in seeds[data]), key=lambda generator: generator[1])
    for data, seed in generators:
        ordered += [Experiment(size, data, kind, ipcs=IPCS) for kind in (REAL, *CORESETS)]
        add(data, TABLE_1, seed)
    for data, seed in generators:
        ordered += [Experiment(size, data, "best5", name, seed, IPCS, (DYNAMIC_BEST5,)) for name in TABLE_1]
    if "fashion_mnist" in seeds:
        add("fashion_mnist", FIGURE_3, ipcs=(1,))
        add("fashion_mnist", ABLATIONS, ipcs=(10,))
        add("fashion_mnist-32", ("cgan", "global-local"), ipcs=(10,))
    if "cifar10" in seeds:
        add("cifar10", TABLE_2, ipcs=(10,), protocols=(DYNAMIC,), networks=TABLE_2_NETWORKS)
    return list(dict.fromkeys(ordered))


def card_experiments(size: str) -> list[Experiment]:
    """Return the evaluations whose generators go to model_cards.

    They are global-local of seed 0 on every data set.
    """
    return [Experiment(size, data, "judge", "global-local", 0, IPCS, PROTOCOLS) for data in SIZES[size].seeds]
