from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_gdd.classifiers.augment import Augment
from hf_gdd.classifiers.networks import build_network, frozen
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.generators.gan import ConditionalGANGenerator, Discriminator
from hf_gdd.methods.global_local import trainer as global_local
from hf_gdd.methods.global_local.matching_distance import matching_losses
from hf_gdd.methods.global_local.model_pool import ModelPool
from hf_gdd.methods.global_local.trainer import GlobalLocalTrainer
from hf_gdd.training.run_folder import stage_file
from hf_gdd.training.trainer import Trainer
from hf_gdd.utils.io import load_state
from hf_gdd.utils.random import Random

DIGITS = ImageTensors.from_dataset("digits").subset(10, 0)
FAST = {"width": 4, "max_steps": 6, "pool": ("convnet1",), "inner_steps": 1}
FAST |= {"codes_ipc": 0, "teacher_network": None}
FAST |= {"checkpoint_every": 1000, "picture_every": 1000, "log_every": 3}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(Trainer, "save_pictures", lambda self: None)


def make(folder, data=DIGITS, **overrides):
    return GlobalLocalTrainer(data, preset="tiny", output_dir=folder, **FAST | overrides)


def opened(folder, stage, **overrides):
    """A trainer with everything built, at the beginning of a stage."""
    trainer = make(folder, **overrides)
    trainer.open()
    trainer.state.stage = [s.name for s in trainer.stages].index(stage)
    trainer.begin(trainer.stages[trainer.state.stage])
    return trainer


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def states(trainer):
    return {name: deepcopy(getattr(trainer, name).state_dict()) for name in ("generator", "discriminator")}


# The losses, against the equations written out in float64.


class Double:
    """A trainer in float64, whose random draws are recorded and whose steps leave gradients rather than change."""

    def __init__(self, folder, monkeypatch, **overrides):
        self.trainer = trainer = opened(folder, "match", **overrides)
        self.network = build_network("convnet1", 10, (1, 8, 8), seed=3).double()
        trainer.pool.advance = lambda: self.network
        for module in (trainer.generator, trainer.discriminator):
            module.double()
        self.normals, self.draws, self.labels, self.uniforms, self.updates = [], [], [], [], []
        normal, draw, randint, rand = trainer.normal, Augment.draw, torch.randint, torch.rand
        monkeypatch.setattr(trainer, "normal", lambda *size: kept(self.normals, normal(*size).double()))
        monkeypatch.setattr(Augment, "draw", lambda *args: kept(self.draws, draw(*args)))
        monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: kept(self.labels, randint(*args, **kwargs)))
        monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: kept(self.uniforms, rand(*args, **kwargs)))
        monkeypatch.setattr(global_local, "to_tanh", lambda images: images.double() / 127.5 - 1)
        monkeypatch.setattr(trainer, "update", self.update)

        data, width = trainer.data, trainer.config.width
        self.generator = ConditionalGANGenerator(data.class_names, data.shape, width, trainer.config.noise_dim)
        self.discriminator = Discriminator(10, (1, 8, 8), width)
        self.matcher = build_network("convnet1", 10, (1, 8, 8))
        pairs = ("generator", trainer.generator), ("discriminator", trainer.discriminator), ("matcher", self.network)
        for name, original in pairs:
            getattr(self, name).double().train().load_state_dict(original.state_dict())

    def update(self, module, optimizer, loss):
        gradients = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
        self.updates.append((module, loss.detach(), gradients))

    def images_of(self, labels, normal):
        return self.generator(torch.cat([torch.eye(10, dtype=torch.float64)[labels], normal], dim=1))


def kept(record, value):
    record.append(value)
    return value


def cross_entropy(logits, labels):
    return -torch.stack([row.log_softmax(0)[label] for row, label in zip(logits, labels, strict=True)]).mean()


def softplus(x):
    return (1 + x.exp()).log()


def assert_gradients(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        b = torch.zeros_like(a) if b is None else b
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert sum(float(b.abs().sum()) for b in expected if b is not None) > 0


@pytest.mark.parametrize("form", ["wgan-gp", "minimax"])
@pytest.mark.parametrize(("method", "weights"), [("dim", (0.3, 7.0)), ("global-local", (0.3, 0.2))])
def test_generator_gradient_is_that_of_the_equations(tmp_path, monkeypatch, method, weights, form):
    settings = {"method": method, "global_weight": weights[0], "local_weight": weights[1], "adversarial": form}
    case = Double(tmp_path / "run", monkeypatch, **settings)
    rows = torch.arange(0, 64)
    case.trainer.step(rows)
    module, loss, gradients = case.updates[0]
    assert module is case.trainer.generator

    labels = DIGITS.labels[rows]
    real = DIGITS.images[rows].double() / 127.5 - 1
    fake = case.images_of(labels, case.normals[0])
    scores, classes = case.discriminator(fake)
    adversarial = -scores.mean() if form == "wgan-gp" else (1 - scores.sigmoid()).log().mean()
    expected = adversarial + cross_entropy(classes, labels)

    (draw,) = case.draws
    assert len(draw) == 1
    augment = Augment("color_crop_cutout")
    mean, std = torch.tensor(DIGITS.mean).double().item(), torch.tensor(DIGITS.std).double().item()
    seen = [augment((((x + 1) / 2) - mean) / std, draw) for x in (real, fake)]
    (real_logits, real_feature), (fake_logits, fake_feature) = (case.matcher(x) for x in seen)
    expected = expected + weights[0] * (fake_logits.log_softmax(1) - real_logits.log_softmax(1)).square().mean()
    if method == "global-local":
        expected = expected + weights[1] * (fake_feature.mean(0) - real_feature.mean(0)).square().sum()
    # float32 statistics of the data are what both sides normalize by
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=1e-7)
    wanted = torch.autograd.grad(expected, list(case.generator.parameters()), allow_unused=True)
    for actual, reference in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-5, atol=1e-7)
    assert max(float(g.abs().max()) for g in gradients) > 1e-3


@pytest.mark.parametrize("class_on_fakes", [False, True])
@pytest.mark.parametrize("form", ["wgan-gp", "minimax"])
def test_discriminator_loss_is_that_of_the_equations(tmp_path, monkeypatch, form, class_on_fakes):
    settings = {"adversarial": form, "class_on_fakes": class_on_fakes, "penalty_weight": 3.0}
    case = Double(tmp_path / "run", monkeypatch, **settings)
    real, labels = DIGITS.images[20:50].double() / 127.5 - 1, DIGITS.labels[20:50]
    loss = case.trainer.discriminator_loss(real, labels)
    gradients = torch.autograd.grad(loss, list(case.trainer.discriminator.parameters()), allow_unused=True)

    (fake_labels,), (normal,) = case.labels, case.normals
    assert len(fake_labels) == 30
    assert len(fake_labels.unique()) > 5
    fake = case.images_of(fake_labels, normal).detach()
    scores = {name: case.discriminator(images) for name, images in (("real", real), ("fake", fake))}
    (real_score, real_class), (fake_score, fake_class) = scores["real"], scores["fake"]
    expected = cross_entropy(real_class, labels)
    if class_on_fakes:
        expected = expected + cross_entropy(fake_class, fake_labels)
    if form == "wgan-gp":
        (mix,) = case.uniforms
        between = torch.stack([m * r + (1 - m) * f for m, r, f in zip(mix.double(), real, fake, strict=True)])
        between.requires_grad_()
        slope = torch.autograd.grad(case.discriminator(between)[0].sum(), between, create_graph=True)[0]
        norms = slope.square().sum((1, 2, 3)).sqrt()
        expected = expected + fake_score.mean() - real_score.mean() + 3.0 * ((norms - 1) ** 2).mean()
    else:
        assert case.uniforms == []
        expected = expected - real_score.sigmoid().log().mean() - (1 - fake_score.sigmoid()).log().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    wanted = torch.autograd.grad(expected, list(case.discriminator.parameters()), allow_unused=True)
    assert_gradients([torch.zeros_like(w) if g is None else g for g, w in zip(gradients, wanted, strict=True)], wanted)
    assert all(parameter.grad is None for parameter in case.trainer.generator.parameters())


# Which parts take part.


class Counted(nn.Module):
    calls = 0

    def __init__(self, num_classes, shape):
        super().__init__()
        self.conv = nn.Conv2d(shape[0], 6, 3)
        self.linear = nn.Linear(6, num_classes)

    def forward(self, x):
        Counted.calls += 1
        feature = torch.relu(self.conv(x))
        return self.linear(feature.mean((2, 3))), feature


class LogitsOnly(Counted):
    def forward(self, x):
        return super().forward(x)[0]


def work_done(folder, monkeypatch, **settings):
    """The metrics' names by stage, how often the pool advanced, and the forward passes of its network in steps."""
    advances, original = [], ModelPool.advance
    monkeypatch.setattr(ModelPool, "advance", lambda self: advances.append(self) or original(self))
    trainer = make(folder, pool=(Counted,), max_steps=2, **settings)
    build = trainer.setup

    def setup():
        parts = build()
        Counted.calls = 0  # what was called so far only tried the network out
        return parts

    monkeypatch.setattr(trainer, "setup", setup)
    trainer.fit()
    names = {record["stage"]: set(record) for record in trainer.run.records()}
    return names, len(advances), Counted.calls


@pytest.mark.parametrize(
    "settings", [{"method": "cgan-continued"}, {"global_weight": 0.0, "local_weight": 0.0}], ids=str
)
def test_zero_weights_do_no_matching(tmp_path, monkeypatch, settings):
    names, advances, calls = work_done(tmp_path / "run", monkeypatch, **settings)
    assert (advances, calls) == (0, 0)
    assert names["match"] == names["gan"]
    assert not names["match"] & {"global", "local"}


@pytest.mark.parametrize(
    ("settings", "terms"),
    [({}, {"global", "local"}), ({"method": "dim"}, {"global"}), ({"global_weight": 0.0}, {"local"})],
    ids=["both", "dim", "local"],
)
def test_matching_happens_in_the_second_stage_alone(tmp_path, monkeypatch, settings, terms):
    names, advances, calls = work_done(tmp_path / "run", monkeypatch, **settings)
    assert advances == 2
    # each matching: one SGD step, the real images, the generated images; one more forward tries a fresh network out
    assert calls == 2 * 3 + 1
    assert names["match"] & {"global", "local"} == terms
    assert not names["gan"] & {"global", "local"}


def test_dim_never_computes_the_local_loss(tmp_path, monkeypatch):
    calls, original = [], global_local.local_loss
    monkeypatch.setattr(global_local, "local_loss", lambda *args: calls.append(args) or original(*args))
    make(tmp_path / "dim", method="dim", max_steps=1).fit()
    assert calls == []
    make(tmp_path / "both", max_steps=1).fit()
    assert len(calls) == 1


def test_cgan_has_one_stage(tmp_path):
    trainer = make(tmp_path / "run", method="cgan")
    assert [stage.name for stage in trainer.stages] == ["gan"]
    generator = trainer.fit()
    assert generator.method == "cgan"
    assert {record["stage"] for record in trainer.run.records()} == {"gan"}


def test_the_reductions_are_the_configured_ones(tmp_path, monkeypatch):
    seen = []
    for name in ("global_loss", "local_loss"):
        original = getattr(global_local, name)
        monkeypatch.setattr(global_local, name, lambda *a, f=original: seen.append(a[2]) or f(*a))
    make(tmp_path / "run", max_steps=1, global_reduction="logit_sum", local_reduction="paired_mean").fit()
    assert seen == ["logit_sum", "paired_mean"]


# Gradients go where they should.


def test_frozen_lets_gradients_through_to_the_input_alone():
    network, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), torch.randn(4, 3, requires_grad=True)
    network[1].bias.requires_grad_(False)
    with frozen(network):
        network(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [parameter.requires_grad for parameter in network.parameters()] == [True, True, True, False]
    with pytest.raises(RuntimeError, match="inside"), frozen(network):
        raise RuntimeError("inside")
    assert network[0].weight.requires_grad


def test_the_generator_step_leaves_discriminator_and_match_network_alone(tmp_path, monkeypatch):
    trainer = opened(tmp_path / "run", "match", inner_steps=0, global_weight=1.0, local_weight=1.0)
    network = trainer.pool.advance()
    trainer.pool.advance = lambda: network
    before, others = deepcopy(network.state_dict()), (trainer.discriminator, network)
    critic = deepcopy(trainer.discriminator.state_dict())
    seen, update = [], trainer.update

    def watch(module, optimizer, loss):
        update(module, optimizer, loss)
        if module is trainer.generator:
            assert all(p.grad is None for other in others for p in other.parameters())
            assert all(p.requires_grad for other in others for p in other.parameters())
            assert same(trainer.discriminator.state_dict(), critic)
        grads = [p.grad for p in module.parameters()]
        seen.append((module, sum(float(g.abs().sum()) for g in grads if g is not None)))

    monkeypatch.setattr(trainer, "update", watch)
    trainer.step(torch.arange(64))
    assert [module for module, _ in seen] == [trainer.generator, trainer.discriminator]
    assert all(total > 0 for _, total in seen)
    assert same(network.state_dict(), before)
    assert not same(trainer.discriminator.state_dict(), critic)


def test_matching_terms_reach_the_generator(tmp_path):
    trainer = opened(tmp_path / "run", "match")
    fake = trainer.generator(trainer.generator.code(DIGITS.labels[:20], trainer.normal(20, 90)))
    for name, term in trainer.match(trainer.pool.advance(), DIGITS.images[:20].float() / 127.5 - 1, fake).items():
        (gradient,) = torch.autograd.grad(term, fake, retain_graph=True)
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("reductions", [("logsoftmax_mean", "batchmean_sum"), ("logit_sum", "paired_sum")])
def test_real_and_generated_images_are_seen_alike(tmp_path, reductions):
    settings = dict(zip(("global_reduction", "local_reduction"), reductions, strict=True))
    trainer = opened(tmp_path / "run", "match", global_weight=1.0, local_weight=1.0, **settings)
    real, other = (DIGITS.images[rows].float() / 127.5 - 1 for rows in (slice(0, 50), slice(50, 100)))
    network = trainer.pool.advance()
    for _ in range(6):
        equal = {name: float(term) for name, term in trainer.match(network, real, real.clone()).items()}
        assert equal == {"global": 0, "local": 0}
        assert min(float(term) for term in trainer.match(network, real, other).values()) > 1e-6


def test_gradient_shares_are_logged_and_sum_to_one(tmp_path):
    trainer = make(tmp_path / "run", global_weight=1.0)
    computed, original = [], global_local.gradient_shares
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(global_local, "gradient_shares", lambda *a: computed.append(trainer.state.step) or original(*a))
        trainer.fit()
    assert computed == [2, 5, 2, 5]  # in the steps that are logged and in no other
    records = trainer.run.records()
    assert [record["step"] for record in records] == [3, 6, 9, 12]
    for record in records:
        shares = {name: value for name, value in record.items() if name.startswith("share/")}
        terms = ["adversarial", "class"] + ["global", "local"] * (record["stage"] == "match")
        assert sorted(shares) == [f"share/{name}" for name in terms]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert min(shares.values()) > 0


# The average, starting from another run, precision.


def test_the_saved_generator_is_the_average(tmp_path):
    trainer = make(tmp_path / "run", ema_decay=0.5)
    average, update = {}, trainer.update

    def averaging(module, optimizer, loss):
        update(module, optimizer, loss)
        if module is trainer.generator:
            for name, value in module.state_dict().items():
                average[name] = 0.5 * average[name] + 0.5 * value if average else value.clone()
            if len(average) < len(module.state_dict()):
                raise AssertionError

    def first(module, optimizer, loss):
        update(module, optimizer, loss)
        if module is trainer.generator:
            average.update(deepcopy(dict(module.state_dict())))
            trainer.update = averaging

    trainer.update = first
    saved = trainer.fit().state_dict()
    floats = [name for name, value in saved.items() if value.is_floating_point()]
    assert sum("running" in name for name in floats) >= 4
    raw = trainer.generator.state_dict()
    for name in floats:
        torch.testing.assert_close(saved[name], average[name], rtol=1e-5, atol=1e-6)
        if "running" in name or name.endswith("weight"):
            assert not torch.allclose(saved[name], raw[name], rtol=1e-5, atol=1e-6), name
    loaded = ConditionalGANGenerator.from_pretrained(tmp_path / "run" / "generator")
    assert same(loaded.state_dict(), saved)


def test_without_an_average_the_last_generator_is_saved(tmp_path):
    trainer = make(tmp_path / "run", ema_decay=0.0)
    saved = trainer.fit()
    assert same(saved.state_dict(), trainer.generator.state_dict())
    assert saved is not trainer.generator
    assert not saved.training
    assert (saved.mean, saved.std, saved.method) == (DIGITS.mean, DIGITS.std, "global-local")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of a run of the first stage alone."""
    folder = tmp_path_factory.mktemp("source") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save_pictures", lambda self: None)
        make(folder, method="cgan").fit()
    return folder


def test_starting_from_a_run_is_going_on_with_it(tmp_path, source):
    kept_state = load_state(stage_file(source, "gan"))
    trainer, started = make(tmp_path / "branch", start_from=str(source)), []
    begin = trainer.begin

    def watch(stage):
        begin(stage)
        started.append((stage.name, states(trainer)))

    trainer.begin = watch
    trainer.fit()
    ((stage, at_start),) = started
    assert stage == "match"
    for name in ("generator", "discriminator"):
        assert same(at_start[name], kept_state[name])
        assert not same(at_start[name], states(trainer)[name])

    in_one_go = make(tmp_path / "whole")
    in_one_go.fit()
    for name, state in states(in_one_go).items():
        assert same(state, states(trainer)[name])


def test_what_made_a_generator_is_told_without_the_place(tmp_path, source):
    trainer = make(tmp_path / "branch", start_from=str(source), gan_epochs=7)
    told = trainer.fit().config.training
    assert str(tmp_path) not in str(told)
    assert str(source) not in str(told)
    assert told["start_from"]["gan_epochs"] == GlobalLocalTrainer.presets["tiny"].gan_epochs
    assert "gan_epochs" not in told
    assert (told["source"], told["license"]) == (trainer.data.source, "cc-by-4.0")


def test_branches_see_the_same_noise_and_batches(tmp_path, source):
    seen = {}
    for method in ("cgan-continued", "dim", "global-local"):
        trainer = make(tmp_path / method, method=method, start_from=str(source), max_steps=4)
        record = seen[method] = []
        build, normal = trainer.setup, trainer.normal

        def setup(trainer=trainer, record=record, build=build):
            following = trainer.batches.next
            trainer.batches.next = lambda size: kept(record, following(size))
            return build()

        trainer.setup = setup
        trainer.normal = lambda *size, normal=normal, record=record: kept(record, normal(*size))
        trainer.fit()
        seen[method].append(trainer.generator.start[0].weight.detach().clone())
    continued, dim, both = (seen[name] for name in ("cgan-continued", "dim", "global-local"))
    assert len(continued) == 4 * 3 + 1  # a batch, noise for the generator, noise for the discriminator
    for others in (dim, both):
        assert all(torch.equal(a, b) for a, b in zip(continued[:-1], others[:-1], strict=True))
        assert not torch.equal(continued[-1], others[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ImageTensors.from_dataset("digits").subset(10, 1)}, "another fingerprint: pass one on the same data"),
        ({"width": 5}, "trained with width=4, not 5: so its first stages cannot be reused"),
        ({"ema_decay": 0.5}, "trained with ema_decay=0.99, not 0.5"),
        ({"seed": 1}, "trained with seed=0, not 1"),
    ],
    ids=["data", "width", "ema_decay", "seed"],
)
def test_the_wrong_source_is_refused(tmp_path, source, change, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "run", start_from=str(source), **change).fit()
    assert not (tmp_path / "run").exists()


def test_an_unfinished_source_is_refused(tmp_path):
    unfinished = make(tmp_path / "source", method="cgan")
    unfinished.step = lambda indices: (_ for _ in ()).throw(RuntimeError("power cut"))
    with pytest.raises(RuntimeError, match="power cut"):
        unfinished.fit()
    with pytest.raises(ValueError, match="has not finished stage 'gan': resume it first"):
        make(tmp_path / "run", start_from=str(tmp_path / "source")).fit()
    assert not (tmp_path / "run").exists()


def test_what_is_held_out_must_be_held_out_in_the_source_too(tmp_path, source):
    def validate(generator, held_out):
        return 0.0

    with pytest.raises(ValueError, match="another held_out: train both with `validate` and an equal held_out"):
        make(tmp_path / "run", start_from=str(source)).fit(validate)
    assert not (tmp_path / "run").exists()
    make(tmp_path / "source", method="cgan", max_steps=2).fit(validate)
    make(tmp_path / "run", start_from=str(tmp_path / "source"), max_steps=2).fit(validate)
    assert load_state(stage_file(tmp_path / "run", "match"))["state"]["global_step"] == 2


def test_bf16_trains(tmp_path, monkeypatch):
    types, cross_entropy_of = set(), F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda x, *a, **k: types.add(x.dtype) or cross_entropy_of(x, *a, **k))
    trainer = make(tmp_path / "run", mixed_precision="bf16", log_every=1)
    generator = trainer.fit()
    assert torch.bfloat16 in types
    assert len(trainer.run.records()) == 12
    assert all(
        torch.isfinite(torch.tensor(v)) for r in trainer.run.records() for v in r.values() if v not in ("gan", "match")
    )
    assert {p.dtype for p in (*generator.parameters(), *trainer.discriminator.parameters())} == {torch.float32}


def test_the_pool_learns_in_bf16_what_it_learns_in_float32(tmp_path):
    networks = {}
    for precision in ("no", "bf16"):
        trainer = make(tmp_path / precision, method="dim", mixed_precision=precision, inner_steps=5, pool_refresh=100)
        trainer.fit()
        networks[precision] = torch.nn.utils.parameters_to_vector(trainer.pool.learner.network.parameters())
        trainer.pool.inner_steps, trainer.pool.age = 0, trainer.pool.refresh
    way = [torch.dist(networks["no"], networks["bf16"]), networks["no"].norm()]
    assert 0 < way[0] < 0.02 * way[1]


# Networks of one's own.


def test_a_callable_in_the_pool(tmp_path):
    trainer = make(tmp_path / "run", pool=(Counted,))
    trainer.fit()
    assert isinstance(trainer.pool.learner.network, Counted)
    assert trainer.run.identity["config"]["pool"] == ["Counted"]


def test_logits_alone_will_do_for_dim_but_not_for_local_matching(tmp_path):
    with pytest.raises(
        ValueError, match=r"LogitsOnly returns logits alone.*return \(logits, feature\), or use method='dim'"
    ):
        make(tmp_path / "run", pool=(LogitsOnly,)).fit()
    assert not (tmp_path / "run").exists()
    trainer = make(tmp_path / "dim", pool=(LogitsOnly,), method="dim")
    trainer.fit()
    assert "global" in trainer.run.records()[-1]


def test_the_pool_is_renewed_as_often_as_told(tmp_path):
    fresh, original = [], ModelPool._learner
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelPool, "_learner", lambda self, seed: fresh.append(seed) or original(self, seed))
        make(tmp_path / "run", pool_refresh=2).fit()
    assert len(fresh) == len(set(fresh)) == 3


def test_a_network_that_is_to_be_replaced_is_not_saved():
    """The state of a pool of large networks is small there, and the next matching is the same."""

    def matched(times, state=None):
        random = Random(3)
        pool = ModelPool(("convnet1", "convnet2"), DIGITS, inner_steps=1, refresh=2, random=random)
        if state:
            random.load_state_dict(state[0])
            pool.load_state_dict(state[1])
        for _ in range(times):
            pool.advance()
        return pool, (random.state_dict(), pool.state_dict())

    assert matched(1)[1][1]["learner"] is not None
    _, state = matched(2)
    assert state[1]["learner"] is None
    one, other = matched(3)[0].learner.network, matched(1, state)[0].learner.network
    assert type(one) is type(other)
    for here, there in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(here, there)


# What all of it is for.


class Small(nn.Module):
    def __init__(self, num_classes, shape):
        super().__init__()
        layers = [
            (nn.Conv2d(n, 32, 3, padding=1), nn.GroupNorm(32, 32), nn.ReLU(), nn.AvgPool2d(2)) for n in (shape[0], 32)
        ]
        self.early, self.late = nn.Sequential(*layers[0]), nn.Sequential(*layers[1], nn.Flatten())
        self.linear = nn.Linear(32 * (shape[1] // 4) * (shape[2] // 4), num_classes)

    def forward(self, x):
        feature = self.early(x)
        return self.linear(self.late(feature)), feature


MATCHED = {"width": 8, "pool": (Small,), "inner_steps": 2, "match_lr": 1e-3, "ema_decay": 0.95, "log_every": 50}
MATCHED |= {"global_weight": 5.0, "local_weight": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_matching_brings_generated_images_closer_to_held_out_ones(tmp_path, seed):
    """Closer than the control that trains as long without matching, in networks that nothing was matched in."""
    train, held_out = ImageTensors.from_dataset("digits").split(0.2, seed=5)
    shared = MATCHED | {"data": train, "seed": seed}
    make(tmp_path / "source", **shared, method="cgan", max_steps=60).fit()
    shared |= {"start_from": str(tmp_path / "source"), "max_steps": 80}
    losses = {}
    for method in ("cgan-continued", "global-local"):
        generator = make(tmp_path / method, method=method, **shared).fit()
        pool = ModelPool(("convnet2",), train, inner_steps=20, refresh=1, random=Random(99))
        losses[method] = matching_losses(generator, held_out, pool, n=2)
    for term in ("global", "local"):
        assert losses["global-local"][term] < losses["cgan-continued"][term], losses
