"""The trainer of diffusion with memories: its loss term by term, its stages, exact resume, and that memories act."""

import itertools
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiTPipeline
from kinds import diffusion, parts

from hf_gdd import AutoGenerator, DiffusionMemoryTrainer, DiffusionSampling, ImageTensors
from hf_gdd.classifiers.learner import NonFiniteLossError
from hf_gdd.classifiers.networks import build_network
from hf_gdd.classifiers.recipes import RECIPES, Recipe
from hf_gdd.cli.main import main
from hf_gdd.data.imagenet import SUBSETS
from hf_gdd.data.normalization import Normalize
from hf_gdd.data.pixels import to_unit
from hf_gdd.generators.dit_pipeline import NULL_CLASS
from hf_gdd.methods.diffusion_memory import selection
from hf_gdd.methods.diffusion_memory.autoencoder import Latents, small_autoencoder
from hf_gdd.methods.diffusion_memory.config import DiffusionMemoryConfig
from hf_gdd.methods.diffusion_memory.selection import choose_draws, network_outputs, train_networks
from hf_gdd.training.run_folder import stage_file
from hf_gdd.training.trainer import Trainer
from hf_gdd.utils.io import load_state, save_state

DIGITS = ImageTensors.from_dataset("digits").subset(10, 0)
FAST = {
    "codes_ipc": 0,
    "teacher_network": None,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "vae_width": 4,
    "latent_channels": 2,
    "num_inference_steps": 2,
    "max_steps": 4,
}
FAST |= {"vae_batch_size": 20, "dit_batch_size": 20, "tune_batch_size": 20, "log_every": 1}
FAST |= {"checkpoint_every": 1000, "picture_every": 1000}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(Trainer, "save_pictures", lambda self: None)


def make(folder, data=DIGITS, **overrides):
    return DiffusionMemoryTrainer(data, preset="tiny", output_dir=folder, **FAST | overrides)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of a run whose first stages others start from."""
    folder = tmp_path_factory.mktemp("first") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save_pictures", lambda self: None)
        make(folder, method="dit", vae_epochs=8, dit_epochs=16, max_steps=80).fit()
    return str(folder)


def tuning(folder, first, **overrides):
    """A trainer at the beginning of its last stage."""
    trainer = make(folder, start_from=first, **overrides)
    trainer.open()
    return trainer


# ---- the step


class Watched:
    """A trainer whose weights stay as they are, and which tells what it drew and what loss it took."""

    def __init__(self, trainer, monkeypatch):
        self.trainer, self.losses, self.asked = trainer, [], []
        monkeypatch.setattr(trainer, "update", lambda module, optimizer, loss: self.losses.append(loss.detach()))
        forward = trainer.transformer.forward

        def asking(x, timestep, class_labels):
            output = forward(x, timestep=timestep, class_labels=class_labels)
            self.asked.append((x.detach(), timestep, class_labels, output.sample.detach()))
            return output

        monkeypatch.setattr(trainer.transformer, "forward", asking)
        draw = trainer.sample_latents
        self.drawn = []
        monkeypatch.setattr(trainer, "sample_latents", lambda rows: self.drawn.append(draw(rows)) or self.drawn[-1])

    def restored(self, place):
        """The predicted clean latents of a step."""
        x, steps, _, output = self.asked[place]
        alpha = self.trainer.components.schedule.alphas_cumprod[steps].view(-1, 1, 1, 1)
        return ((x - (1 - alpha).sqrt() * output[:, :2]) / alpha.sqrt()).flatten(1)


def by_hand(restored, labels, real, generated, weights):
    """Both memory terms over plain lists: of a class's latents and its memory the extreme cosine."""
    totals, classes = [0.0, 0.0], labels.unique().tolist()
    for label in classes:
        mine = [vector for vector, other in zip(restored, labels.tolist(), strict=True) if other == label]
        pairs = [list(itertools.product(mine, memory[label])) for memory in (real, generated)]
        if pairs[0]:
            totals[0] += 1 - min(float(F.cosine_similarity(a, b, dim=0)) for a, b in pairs[0])
            totals[1] += max(float(F.cosine_similarity(a, b, dim=0)) for a, b in pairs[1])
    return [weight * total / len(classes) for weight, total in zip(weights, totals, strict=True)]


def test_the_terms_are_those_of_the_equations(tmp_path, first, monkeypatch):
    trainer = tuning(tmp_path / "run", first, real_weight=0.5, gen_weight=0.25, real_memory=64, gen_memory=64)
    watched = Watched(trainer, monkeypatch)
    real, generated = ([[] for _ in range(10)] for _ in range(2))
    for place in range(3):
        terms = trainer.step(trainer.batches.next(20))
        clean, labels = watched.drawn[place]
        noisy, steps, _, output = watched.asked[place]
        alpha = trainer.components.schedule.alphas_cumprod[steps].view(-1, 1, 1, 1)
        noise = (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        torch.testing.assert_close(terms["noise"], F.mse_loss(output[:, :2], noise), atol=1e-4, rtol=1e-4)
        expected = by_hand(watched.restored(place), labels, real, generated, (0.5, 0.25))
        torch.testing.assert_close(torch.stack([terms["real"], terms["generated"]]), torch.tensor(expected))
        assert (expected == [0, 0]) == (place == 0)
        total = sum(terms[name] for name in ("noise", "variance", "real", "generated"))
        torch.testing.assert_close(watched.losses[place], total)
        for latents, memory in ((clean.flatten(1), real), (watched.restored(place), generated)):
            for vector, label in zip(latents, labels.tolist(), strict=True):
                memory[label].append(vector)


def test_labels_are_hidden_once_a_sample(tmp_path, first, monkeypatch):
    trainer = tuning(tmp_path / "run", first, label_dropout=0.1)
    watched = Watched(trainer, monkeypatch)
    for _ in range(60):
        trainer.step(trainer.batches.next(20))
    given = torch.cat([labels for _, _, labels, _ in watched.asked])
    truth = torch.cat([labels for _, labels in watched.drawn])
    hidden = given == NULL_CLASS
    assert 0.06 < float(hidden.float().mean()) < 0.14
    assert torch.equal(given[~hidden], truth[~hidden])


@pytest.mark.parametrize(("method", "evict"), [("self-adaptive", "redundant"), ("minimax", "oldest")])
def test_methods_differ_in_what_is_evicted(tmp_path, first, method, evict):
    trainer = tuning(tmp_path / "run", first, method=method, real_memory=7, gen_memory=5)
    memories = trainer.parts["real"], trainer.parts["generated"]
    assert [(memory.evict, memory.capacity) for memory in memories] == [(evict, 7), (evict, 5)]
    for _ in range(8):
        trainer.step(trainer.batches.next(20))
    assert [int(memory.is_member.sum(1).max()) for memory in memories] == [7, 5]


def test_without_memory_there_is_none(tmp_path, first):
    trainer = tuning(tmp_path / "run", first, method="dit")
    assert not {"real", "generated"} & (trainer.parts.keys() | trainer.step(trainer.batches.next(20)).keys())


def test_an_epoch_counts_when_it_is_over(tmp_path, first):
    trainer = tuning(tmp_path / "run", first, memory_update="epoch", real_memory=3)
    held = []
    for _ in range(11):
        terms = trainer.step(trainer.batches.next(20))
        held.append(int(trainer.parts["real"].is_member.sum()))
        assert (float(terms["real"]) > 0) == (len(held) > 5)
    assert held == [0] * 4 + [30] * 7


def test_no_gradient_reaches_what_is_frozen(tmp_path, first):
    trainer = tuning(tmp_path / "run", first)
    before = {name: value.clone() for name, value in trainer.transformer.state_dict().items()}
    for _ in range(2):
        trainer.step(trainer.batches.next(20))
    changed = {name for name, value in trainer.transformer.state_dict().items() if not torch.equal(value, before[name])}
    assert any(".gammas." in name for name in changed)
    assert all(name.endswith(("bias", "embedding_table.weight")) or ".gammas." in name for name in changed)
    weights = [value for name, value in trainer.transformer.named_parameters() if name.endswith("to_q.linear.weight")]
    assert weights
    assert all(weight.grad is None for weight in weights)


def test_full_tuning_trains_everything(tmp_path):
    trainer = make(tmp_path / "run", tuning="full", max_steps=2)
    trainer.fit()
    end = stage_file(trainer.run.path, "dit")
    before = load_state(end)["transformer"]
    changed = {name for name, value in trainer.transformer.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.endswith("to_q.weight") for name in changed)


# ---- memories act


def distances(folder, first, steps=60, **overrides):
    """Both unweighted distances over the last steps of the last stage."""
    trainer = make(
        folder, start_from=first, max_steps=steps, tune_epochs=50, gen_memory=16, real_memory=16, **overrides
    )
    trainer.fit()
    records, weights = trainer.run.records()[-20:], trainer.config.weights
    return {name: sum(r[name] for r in records) / len(records) / weights[name] for name in ("real", "generated")}


@pytest.mark.parametrize("seed", [0, 1])
def test_memories_move_what_they_claim_to(tmp_path, seed):
    """Against an equally long run on the same draws whose memories weigh nothing."""
    start, small = str(tmp_path / "first"), 1e-9
    make(start, method="dit", tuning="full", seed=seed, vae_epochs=8, dit_epochs=16, max_steps=80).fit()
    weights = {"control": (small, small), "real": (10.0, small), "generated": (small, 10.0)}
    found = {
        name: distances(
            tmp_path / name, start, seed=seed, tuning="full", tune_lr=2e-3, real_weight=real, gen_weight=gen
        )
        for name, (real, gen) in weights.items()
    }
    assert found["real"]["real"] < 0.93 * found["control"]["real"]
    assert found["generated"]["generated"] < 0.95 * found["control"]["generated"]


# ---- stages


def test_stages_follow_from_where_it_starts(tmp_path, first):
    assert [stage.name for stage in make(tmp_path / "a").stages] == ["vae", "dit", "tune"]
    assert [stage.name for stage in make(tmp_path / "b", start_from=first).stages] == ["tune"]
    lengths = make(tmp_path / "c", max_steps=None, vae_epochs=3, dit_epochs=2, tune_epochs=1).stages
    assert [(stage.steps, stage.batch_size) for stage in lengths] == [(15, 20), (10, 20), (5, 20)]


def test_what_is_made_is_a_generator_of_these_classes(tmp_path):
    trainer = make(tmp_path / "run", guidance_scale=3.0)
    generator = trainer.fit()
    assert generator.sampling == DiffusionSampling(3.0, 2, "dpm++")
    assert (generator.class_names, generator.image_shape) == (DIGITS.class_names, (1, 8, 8))
    assert (generator.mean, generator.std, generator.method) == (DIGITS.mean, DIGITS.std, "self-adaptive")
    assert generator.config.training["source"] == DIGITS.source
    loaded = AutoGenerator.from_pretrained(tmp_path / "run" / "generator")
    labels, indices = torch.arange(10), torch.zeros(10, dtype=torch.int64)
    assert torch.equal(loaded.sample(labels, indices), generator.sample(labels, indices))


def test_the_average_is_what_is_saved(tmp_path):
    trainer = make(tmp_path / "run", tuning="full", ema_decay=0.5)
    generator = trainer.fit()
    averaged = trainer.parts["average_tune"].module[-1]
    assert torch.equal(generator.transformer.proj_out_2.bias, averaged)
    assert not torch.equal(generator.transformer.proj_out_2.bias, trainer.transformer.proj_out_2.bias)


def test_the_last_stage_starts_from_the_average_before_it(tmp_path, first):
    trainer = tuning(tmp_path / "run", first)
    averaged = load_state(stage_file(first, "dit"))["average_dit"]
    assert torch.equal(trainer.transformer.proj_out_2.bias.detach(), list(averaged.values())[-1])


def test_methods_that_start_from_one_run_see_the_same_draws(tmp_path, first, monkeypatch):
    seen = []
    for method in ("dit", "minimax", "self-adaptive"):
        watched = Watched(tuning(tmp_path / method, first, method=method), monkeypatch)
        for _ in range(3):
            watched.trainer.step(watched.trainer.batches.next(20))
        seen.append(torch.cat([x for x, _, _, _ in watched.asked]))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


@pytest.mark.parametrize(
    ("words", "overrides"),
    [("width=16", {"width": 32}), ("seed=0", {"seed": 3}), ("another fingerprint", {"data": DIGITS.subset(5, 0)})],
)
def test_a_start_that_does_not_fit_is_refused(tmp_path, first, words, overrides):
    with pytest.raises(ValueError, match=words):
        make(tmp_path / "run", start_from=first, **overrides).fit()


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("step", [2, 5, 10], ids=["vae", "dit", "tune"])
@pytest.mark.parametrize("update", ["step", "epoch"])
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(tmp_path, step, update):
    settings = {"checkpoint_every": 1, "memory_update": update, "max_steps": 6 if update == "epoch" else 4}
    whole = make(tmp_path / "whole", **settings)
    expected = whole.fit()
    cut = make(tmp_path / "cut", **settings)
    walk = cut.step

    def fail(indices):
        if cut.state.global_step == step:
            raise PowerCut
        return walk(indices)

    cut.step = fail
    with pytest.raises(PowerCut):
        cut.fit()
    resumed = make(tmp_path / "cut", **settings)
    generator = resumed.fit()
    assert generator.fingerprint == expected.fingerprint
    for name, memory in ((name, resumed.parts[name]) for name in ("real", "generated")):
        assert torch.equal(memory.vectors, whole.parts[name].vectors)
    assert make(tmp_path / "cut", **settings).fit().fingerprint == expected.fingerprint


# ---- the autoencoder


def test_latents_are_encoded_once_with_their_mirror_images(monkeypatch):
    calls, encode = [], AutoencoderKL.encode
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, x: calls.append(len(x)) or encode(self, x))
    torch.manual_seed(0)
    vae = small_autoencoder((1, 8, 8), width=4, levels=2, channels=2)
    latents = Latents(vae, DIGITS, flip=True)
    assert sum(calls) == 200
    rows, drawn = torch.tensor([3, 3]), torch.zeros(2, 2, 4, 4)
    plain, mirrored = latents.sample(rows, torch.tensor([0.2, 0.7]), drawn)
    with torch.no_grad():
        image = DIGITS.images[3:4].float() / 127.5 - 1
        expected = [encode(vae, x).latent_dist for x in (image, image.flip(3))]
    torch.testing.assert_close(plain, expected[0].mean[0])
    torch.testing.assert_close(mirrored, expected[1].mean[0])
    noise = torch.randn(2, 2, 4, 4)
    torch.testing.assert_close(
        latents.sample(rows, torch.tensor([0.2, 0.7]), noise)[1], expected[1].mean[0] + expected[1].std[0] * noise[1]
    )
    many = latents.sample(torch.arange(100), torch.rand(100), torch.randn(100, 2, 4, 4)) * latents.scale
    assert many.std() == pytest.approx(1, abs=0.1)


def test_the_scale_of_latents_reaches_the_pipeline(tmp_path):
    trainer = make(tmp_path / "run")
    assert trainer.fit().vae.config.scaling_factor == pytest.approx(trainer.latents.scale)


def test_without_mirror_images_there_are_none():
    vae = small_autoencoder((1, 8, 8), width=4, levels=2, channels=2)
    latents = Latents(vae, DIGITS, flip=False)
    drawn = torch.zeros(1, 2, 4, 4)
    one, other = (latents.sample(torch.tensor([3]), torch.tensor([u]), drawn) for u in (0.0, 0.99))
    assert torch.equal(one, other)


def test_what_is_looked_at(tmp_path):
    trainer = make(tmp_path / "run")
    trainer.open()
    while_encoding = trainer.picture()
    trainer.state.stage = 1
    assert trainer.picture().height > while_encoding.height


# ---- chosen draws


def networks(*seeds, name="convnet1"):
    """Networks that learned nothing."""
    return [build_network(name, 10, DIGITS.shape, seed=seed).eval() for seed in seeds]


def outputs_of(judges, images):
    return network_outputs(judges, Normalize(DIGITS.mean, DIGITS.std)(to_unit(images)))


@pytest.fixture(scope="module")
def drawn(first):
    """A generator, and forty of its draws of every class, [10, 40, 1, 8, 8]."""
    generator = AutoGenerator.from_pretrained(f"{first}/generator")
    labels, indices = torch.arange(10).repeat_interleave(40), torch.arange(40).repeat(10)
    return generator, generator.sample(labels, indices).unflatten(0, (10, 40))


class GoodGenerator:
    """A generator whose draws are as good as real images: they are some."""

    sampling = DiffusionSampling()

    def __init__(self, data):
        rows = [(data.labels == label).nonzero()[:30, 0] for label in range(10)]
        self.images = data.images[torch.stack(rows)]

    def sample(self, labels, indices, sampling):
        return self.images[labels, indices]


def distance_from_real(judges, images):
    """Mean squared distance of every prefix's mean from the real mean, over classes, [M]."""
    distances = []
    for label, each in enumerate(images):
        for ours, theirs in zip(
            outputs_of(judges, each), outputs_of(judges, DIGITS.images[DIGITS.labels == label]), strict=True
        ):
            prefix_means = ours.cumsum(0) / torch.arange(1, len(ours) + 1)[:, None]
            distances.append((prefix_means - theirs.mean(0)).square().mean(1) / theirs.var())
    return torch.stack(distances).mean(0)


def test_chosen_draws_are_nearer_to_real_images_also_in_networks_that_did_not_choose():
    generator = GoodGenerator(ImageTensors.from_dataset("digits", "test"))
    codes = choose_draws(generator, DIGITS, networks(0, 1), 8, 30)
    assert (codes.dtype, tuple(codes.shape)) == (torch.int32, (10, 8))
    assert int(codes.max()) < 30
    chosen = torch.stack([images[row] for images, row in zip(generator.images, codes.long(), strict=True)])
    for name in ("convnet1", "resnet10-dd"):
        judges = networks(7, 8, name=name)
        ours, plain = (distance_from_real(judges, images) for images in (chosen, generator.images[:, :8]))
        assert (ours < 0.7 * plain).all(), ours / plain


def energy(ours, theirs):
    """Energy distance of two sets of features, but for the distances within the second."""
    return 2 * torch.cdist(ours, theirs).mean() - torch.cdist(ours, ours).fill_diagonal_(0).mean()


def test_each_draw_is_the_best_for_the_set_that_it_completes(drawn):
    generator, images = drawn
    judges = networks(0, 1)
    codes = choose_draws(generator, DIGITS, judges, 4, 40)
    for label in (0, 7):
        real = outputs_of(judges, DIGITS.images[DIGITS.labels == label])
        ours, chosen = outputs_of(judges, images[label]), []
        for _ in range(4):
            rest = [row for row in range(40) if row not in chosen]
            distances = [
                sum(
                    float(energy(x[[*chosen, row]], y) / (y.std() * y.shape[1] ** 0.5))
                    for x, y in zip(ours, real, strict=True)
                )
                for row in rest
            ]
            chosen.append(rest[distances.index(min(distances))])
        assert codes[label].tolist() == chosen


def test_a_short_list_begins_a_long_one_and_names_each_draw_once(drawn):
    generator, _ = drawn
    short, long = (choose_draws(generator, DIGITS, networks(0), count, 12) for count in (3, 12))
    assert torch.equal(short, long[:, :3])
    assert torch.equal(long.sort(1).values, torch.arange(12).int().expand(10, -1))


def test_draws_are_those_without_codes(drawn):
    generator, _ = drawn
    expected, again = choose_draws(generator, DIGITS, networks(0), 3, 12), deepcopy(generator)
    again.codes = torch.arange(20, 23).expand(10, -1)
    assert torch.equal(choose_draws(again, DIGITS, networks(0), 3, 12), expected)


def test_networks_that_choose_differ_and_are_trained_as_the_settings_say():
    config = DiffusionMemoryConfig(codes_pool=("convnet1", "convnet2"), codes_networks=3, codes_inner_steps=20)
    trained, again = (train_networks(config, DIGITS) for _ in range(2))
    weights = [torch.nn.utils.parameters_to_vector(network.parameters()) for network in trained]
    assert [len(x) for x in weights] == [len(weights[i % 2]) for i in range(3)]
    assert not torch.equal(weights[0], weights[2])
    assert not any(network.training for network in trained)
    images = DIGITS.images[:50]
    for one, other in zip(outputs_of(trained, images), outputs_of(again, images), strict=True):
        assert torch.equal(one, other)
    other_seed = train_networks(config.changed(seed=1, max_steps=2), DIGITS)
    untrained = train_networks(config.changed(codes_inner_steps=0), DIGITS)
    for others in (other_seed, untrained):
        assert not torch.equal(outputs_of(others, images)[0], outputs_of(trained, images)[0])
    shares = [
        float((outputs_of(each, DIGITS.images)[0].argmax(1) == DIGITS.labels).float().mean())
        for each in (untrained, trained)
    ]
    assert shares[1] > shares[0] + 0.3


def test_a_network_that_diverged_chooses_nothing(drawn):
    (broken,) = networks(0)
    next(broken.parameters()).data.fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match="diverged on the real images"):
        choose_draws(drawn[0], DIGITS, [broken], 2, 4)


CHOSEN = {"codes_ipc": 3, "codes_candidates": 8, "codes_networks": 2, "codes_inner_steps": 2}


def test_a_run_ends_with_chosen_draws(tmp_path, monkeypatch):
    generator = make(tmp_path / "run", codes_pool=("convnet1",), **CHOSEN).fit()
    plain = make(tmp_path / "plain").fit()
    assert (tuple(generator.codes.shape), plain.codes) == ((10, 3), None)
    assert int(generator.codes.max()) < 8
    assert not torch.equal(generator.codes, torch.arange(3).int().expand(10, -1))
    labels, indices = torch.arange(10).repeat_interleave(8), torch.arange(8).repeat(10)
    images = plain.sample(labels, indices)
    assert torch.equal(generator.sample(labels, indices, sampling=replace(generator.sampling, distilled=False)), images)
    assert CHOSEN.items() <= generator.config.training.items()
    assert generator.config.training["codes_pool"] == ("convnet1",)
    loaded = AutoGenerator.from_pretrained(tmp_path / "run" / "generator")
    assert torch.equal(loaded.codes, generator.codes)
    assert "The first 3 images of each class are distilled" in (tmp_path / "run/generator/README.md").read_text()
    # A finished run that is repeated takes its own choice; one that trained on chooses anew.
    monkeypatch.setattr(selection, "choose_draws", lambda *arguments: torch.arange(3).expand(10, -1).int())
    assert make(tmp_path / "run", codes_pool=("convnet1",), **CHOSEN).fit().fingerprint == generator.fingerprint
    state = stage_file(tmp_path / "run", "codes")
    save_state(state, load_state(state) | {"generator": "another"})
    assert make(tmp_path / "run", codes_pool=("convnet1",), **CHOSEN).fit().codes[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("codes_ipc is 9, but there are 8 draws", {"codes_ipc": 9, "codes_candidates": 8}),
        ("codes_ipc is -1", {"codes_ipc": -1}),
        ("codes_candidates is 0", {"codes_candidates": 0}),
        ("codes_networks is 0", {"codes_networks": 0}),
        ("codes_pool is 'convnet3'", {"codes_pool": "convnet3"}),
        (r"codes_pool is \(\)", {"codes_pool": ()}),
        ("codes_pool is .*it must be a tuple of names among", {"codes_pool": ("resnet",)}),
    ],
)
def test_settings_that_cannot_choose_are_refused(words, settings):
    with pytest.raises(ValueError, match=words):
        DiffusionMemoryConfig(**settings)


# ---- a pretrained model


@pytest.fixture
def pretrained(tmp_path):
    names = tuple("0123456789")
    diffusion(names=names).save_pretrained(tmp_path / "pretrained")
    return str(tmp_path / "pretrained")


def from_pretrained(folder, pretrained, data=DIGITS, **overrides):
    settings = {"pretrained": pretrained, "max_steps": 3, "tune_batch_size": 20}
    return DiffusionMemoryTrainer(
        data, preset="paper", output_dir=folder, num_inference_steps=2, **settings | overrides
    )


def test_a_pretrained_model_is_tuned_in_part(tmp_path, pretrained):
    trainer = from_pretrained(tmp_path / "run", pretrained, checkpoint_every=2)
    assert [stage.name for stage in trainer.stages] == ["tune"]
    before = AutoGenerator.from_pretrained(pretrained)
    after = trainer.fit()
    assert after.vae.config.scaling_factor == before.vae.config.scaling_factor == 0.3
    saved = trainer.run.last_checkpoint()
    assert not {"transformer", "vae"} & saved.keys()
    mine, theirs = after.transformer.transformer_blocks[1], before.transformer.transformer_blocks[1]
    assert torch.equal(mine.attn1.to_q.weight, theirs.attn1.to_q.weight)  # only the first half is scaled
    assert not torch.equal(mine.attn1.to_q.bias, theirs.attn1.to_q.bias)
    resumed = from_pretrained(tmp_path / "run", pretrained).fit()
    assert resumed.fingerprint == after.fingerprint


def test_classes_of_a_pretrained_model_are_found_by_name(tmp_path, pretrained):
    trainer = from_pretrained(tmp_path / "run", pretrained, classes=tuple("9876543210"))
    generator = trainer.fit()
    assert generator.config.class_rows == tuple(range(9, -1, -1))
    assert generator.class_names == DIGITS.class_names
    assert generator.config.known_classes["9"] == "9"


@pytest.mark.parametrize("saved", ["dpm++", "ddpm"])
def test_the_noise_of_a_pretrained_model_does_not_depend_on_its_sampler(tmp_path, saved, monkeypatch):
    """The last steps hide the image, not the first: samplers of diffusers do not agree before they are set up."""
    generator = diffusion(names=DIGITS.class_names, sampling={"scheduler": saved})
    generator.save_pretrained(tmp_path / "pretrained")
    trainer = from_pretrained(tmp_path / "run", str(tmp_path / "pretrained"))
    trainer.open()
    watched = Watched(trainer, monkeypatch)
    for _ in range(5):
        trainer.step(trainer.batches.next(20))
    late = {False: [], True: []}
    for (x, steps, _, _), (clean, _) in zip(watched.asked, watched.drawn, strict=True):
        for noisy, step, latent in zip(x, steps.tolist(), clean, strict=True):
            late[step > 500].append(float(F.cosine_similarity(noisy.flatten(), latent.flatten(), dim=0)))
    likeness = {half: sum(values) / len(values) for half, values in late.items()}
    assert likeness[False] > likeness[True] + 0.2


def test_a_run_does_not_go_on_with_another_model(tmp_path, pretrained):
    from_pretrained(tmp_path / "run", pretrained, checkpoint_every=2).fit()
    diffusion(seed=5, names=DIGITS.class_names).save_pretrained(pretrained)
    with pytest.raises(ValueError, match="no longer the one"):
        from_pretrained(tmp_path / "run", pretrained).fit()


def test_a_model_of_half_precision_is_tuned_in_single(tmp_path, pretrained):
    AutoGenerator.from_pretrained(pretrained, dtype="bfloat16").save_pretrained(tmp_path / "half")
    made = from_pretrained(tmp_path / "run", str(tmp_path / "half")).fit()
    assert {tensor.dtype for tensor in made.weights.values() if tensor.is_floating_point()} == {torch.float32}


def test_licences_and_models_are_handed_down(tmp_path, pretrained):
    data = replace(DIGITS, license="mit")
    made = from_pretrained(tmp_path / "run", pretrained, data, pretrained_license="cc-by-nc-4.0").fit()
    assert made.license == ["mit", "cc-by-nc-4.0"]
    assert "cc-by-nc-4.0" in (tmp_path / "run/generator/README.md").read_text()
    assert str(tmp_path) not in (tmp_path / "run/generator/README.md").read_text()
    assert made.config.training["pretrained"].startswith("a local model (")
    assert DiffusionMemoryConfig().base == ("refs/pr/1", "cc-by-nc-4.0")


def test_more_classes_than_a_pipeline_has_are_refused_at_once(tmp_path):
    labels = torch.arange(1001)
    images = torch.zeros(1001, 1, 8, 8, dtype=torch.uint8)
    data = ImageTensors(images, labels, tuple(map(str, range(1001))), "many:train", torch.device("cpu"))
    with pytest.raises(ValueError, match="takes 1000 at most"):
        make(tmp_path / "run", data).fit()


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        ("'ten' is none of", {"classes": (*"012345678", "ten")}),
        ("2 classes are named", {"classes": ("0", "1")}),
        ("pass image_size=8", {"image_size": 16, "data": "digits"}),
        ("convert the images", {"data": replace(DIGITS, images=DIGITS.images.repeat(1, 3, 1, 1))}),
    ],
)
def test_a_pretrained_model_that_does_not_fit_is_refused(tmp_path, pretrained, words, overrides):
    with pytest.raises(ValueError, match=words):
        from_pretrained(tmp_path / "run", pretrained, **overrides).fit()
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_a_repo_that_diffusers_alone_has_made_is_tuned(tmp_path):
    """As DiT-XL/2 on ImageWoof, in small: a thousand classes, of which the data set's are named by WordNet ids."""
    pipeline = DiTPipeline(**parts(shape=(3, 16, 16)))
    pipeline.register_to_config(id2label={str(row): f"name {row}, alias {row}" for row in range(1000)})
    pipeline.save_pretrained(tmp_path / "stock")
    images = torch.randint(256, (60, 3, 16, 16), dtype=torch.uint8)
    names = tuple(f"dog {i}" for i in range(10))
    data = ImageTensors(images, torch.arange(10).repeat(6), names, "dogs:train", torch.device("cpu"))
    settings = {"classes": SUBSETS["imagewoof"], "tune_batch_size": 8}
    generator = from_pretrained(tmp_path / "run", str(tmp_path / "stock"), data, **settings).fit()
    assert generator.config.class_rows == (193, 182, 258, 162, 155, 167, 159, 273, 207, 229)
    assert generator.class_names == names
    again = DiTPipeline.from_pretrained(tmp_path / "run" / "generator")
    assert again.get_label_ids(["alias 193"]) == [193]
    before, after = (
        each.transformer.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
        for each in (DiTPipeline.from_pretrained(tmp_path / "stock"), again)
    )
    changed = (before != after).any(1).nonzero().flatten().tolist()
    assert set(changed) <= {*generator.config.class_rows, NULL_CLASS}
    assert len(changed) > 3


def test_a_model_without_learned_variance_is_tuned(tmp_path):
    generator = diffusion(names=DIGITS.class_names)
    generator.transformer = parts(learned=False)["transformer"].eval()
    generator.save_pretrained(tmp_path / "pretrained")
    trainer = from_pretrained(tmp_path / "run", str(tmp_path / "pretrained"))
    trainer.fit()
    assert not any("variance" in record for record in trainer.run.records())


# ---- settings


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("vae_epochs is 0", {"vae_epochs": 0}),
        ("width is 66", {"width": 66, "heads": 3}),
        ("of heads, 5", {"width": 64, "heads": 5}),
        ("real_weight is -1", {"real_weight": -1.0}),
        ("gen_memory is 0", {"gen_memory": 0}),
        ("ema_decay is 1", {"ema_decay": 1.0}),
        ("guidance_scale is 0", {"guidance_scale": 0.0}),
        ("Unknown method", {"method": "maximin"}),
        ("Unknown memory_update", {"memory_update": "batch"}),
        ("not both", {"pretrained": "me/x", "start_from": "y"}),
        ("leave them out", {"pretrained": None, "classes": ("a",)}),
    ],
)
def test_impossible_settings_are_refused(words, settings):
    with pytest.raises(ValueError, match=words):
        DiffusionMemoryConfig(**settings)


@pytest.mark.parametrize(
    ("words", "settings"),
    [("image_size=", {"vae_levels": 5}), ("patch_size 3 does not divide", {"patch_size": 3})],
)
def test_images_that_cannot_be_encoded_are_refused(tmp_path, words, settings):
    with pytest.raises(ValueError, match=words):
        make(tmp_path / "run", **settings).fit()


def test_a_pretrained_runs_record_names_no_network_that_was_not_built():
    record = DiffusionMemoryConfig().identity()
    assert not {"width", "vae_width", "dit_lr"} & record.keys()
    assert DiffusionMemoryConfig.from_identity(record) == DiffusionMemoryConfig()


def test_the_command_trains_and_repeats(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (FAST | {"max_steps": 2}).items()]
    assert main(["distill", "--dataset", "digits", "--method", "minimax", "--preset", "tiny", *options]) == 0
    assert "runs/digits-minimax-tiny/generator" in capsys.readouterr().out
    assert main(["distill", "--config", "runs/digits-minimax-tiny", "--output-dir", "again"]) == 0
    one, other = (
        AutoGenerator.from_pretrained(f"{folder}/generator") for folder in ("runs/digits-minimax-tiny", "again")
    )
    assert one.fingerprint == other.fingerprint
    made = [
        "materialize",
        "again/generator",
        "--ipc",
        "1",
        "--num-inference-steps",
        "1",
        "--guidance-scale",
        "1",
        "--scheduler",
        "ddim",
    ]
    assert main(made) == 0
    assert main(["materialize", "again/generator", "--truncation", "0.5"]) == 2
    assert "has no truncation, but guidance_scale, num_inference_steps, scheduler" in capsys.readouterr().err
    monkeypatch.setitem(RECIPES, "tiny", Recipe(max_steps=3))
    judged = ["evaluate", "again/generator", "--dataset", "digits", "--ipc", "2", "--networks", "convnet1", "--n", "1"]
    assert main([*judged, "--recipe", "tiny", "--quality", "--guidance-scale", "1", "--num-inference-steps", "1"]) == 0
    report = capsys.readouterr().out
    assert "guidance_scale=1.0, num_inference_steps=1, scheduler=dpm++" in report
    assert "| reconstruction | - | 360 |" in report
    assert main([*judged, "--classes", *"012345678", "unicorn"]) == 2
    assert "'unicorn' is none of the model's classes" in capsys.readouterr().err
    assert main([*judged, "--classes", "1"]) == 2
    assert "1 classes are chosen for the 10" in capsys.readouterr().err
    before = (tmp_path / "again/generator/report.json").read_text()
    assert main([*judged, "--recipe", "tiny", "--num-inference-steps", "1", "--classes", *"9876543210"]) == 0
    assert (tmp_path / "again/generator/report.json").read_text() == before
    assert (tmp_path / "report.json").is_file()


def test_a_copy_of_a_trainers_generator_is_apart_from_it(tmp_path, first):
    trainer = tuning(tmp_path / "run", first)
    trainer.step(trainer.batches.next(20))
    made = trainer.to_generator()
    before = deepcopy(made.weights)
    trainer.step(trainer.batches.next(20))
    assert all(torch.equal(value, before[name]) for name, value in made.weights.items())
