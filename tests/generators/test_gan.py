"""The published networks at every size; images of (label, index, seed) alone; folders that keep both."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hf_gdd import AutoGenerator
from hf_gdd.data.image_tensors import MAX_SIZE, MIN_SIZE
from hf_gdd.generators.base import GRID_COLUMNS
from hf_gdd.generators.gan import ConditionalGANGenerator, Discriminator, map_sizes
from hf_gdd.generators.sampling import Sampling
from hf_gdd.hub.loading import LoadError
from hf_gdd.report import Report, Result
from hf_gdd.utils.plotting import image_grid

TEN = tuple(f"class {i}" for i in range(10))
NAMES = ("zebra", "ant", "mole")
REPORT = Report(
    results=(Result("gan", "fixed", "convnet3", 1, (0.5, 0.25), (0, 1), 0, 10, 3, 99, 1.5),),
    train="toy:train",
    test="toy:test",
    recipe={"lr": 0.01},
    normalization="real",
    device="cpu",
)


def reported(generator):
    """A report of these weights."""
    return replace(REPORT, results=(replace(REPORT.results[0], generator=generator.fingerprint),))


def trained(names=NAMES, shape=(1, 8, 8), width=6, seed=0, **config):
    """A generator whose BatchNorm statistics fit its weights, so that its images use the range of pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = ConditionalGANGenerator(names, shape, width=width, **config)
        norms = [module for module in generator.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            labels = torch.arange(64) % len(names)
            generator.train()(generator.code(labels, torch.randn(64, generator.config.noise_dim)))
        for norm in norms:
            norm.momentum = 0.1
    return generator.eval()


def requests(per_class, classes=3):
    return torch.arange(classes).repeat_interleave(per_class), torch.arange(per_class).repeat(classes)


def in_batches(generator, labels, indices, size, **options):
    pairs = zip(labels.split(size), indices.split(size), strict=True)
    return torch.cat([generator.sample(*pair, **options) for pair in pairs])


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# ---- the networks


def test_parameter_counts_are_the_published_ones():
    assert parameters(ConditionalGANGenerator(TEN, (3, 32, 32), width=196)) == 3_559_363
    assert parameters(ConditionalGANGenerator(TEN, (1, 28, 28), width=196)) == 3_286_921
    assert parameters(Discriminator(10, (3, 32, 32), width=196)) == 3_137_971


def test_the_published_width_and_noise_are_the_defaults():
    assert parameters(ConditionalGANGenerator(TEN, (3, 32, 32))) == 3_559_363
    assert parameters(Discriminator(10, (3, 32, 32))) == 3_137_971


@pytest.mark.parametrize(
    ("size", "maps"),
    [(32, [4, 8, 16, 32]), (28, [4, 7, 14, 28]), (20, [3, 5, 10, 20]), (8, [4, 8]), (64, [4, 8, 16, 32, 64])],
)
def test_map_sizes(size, maps):
    assert map_sizes(size) == maps


@pytest.mark.parametrize("size", range(MIN_SIZE, MAX_SIZE + 1))
def test_every_size_works(size):
    channels = 1 + 2 * (size % 2)
    generator = ConditionalGANGenerator(("a", "b"), (channels, size, size), width=4)
    discriminator = Discriminator(2, (channels, size, size), width=4)
    images = generator(generator.code(torch.tensor([0, 1]), torch.randn(2, 90)))
    assert images.shape == (2, channels, size, size)
    assert images.abs().max() <= 1
    scores, classes = discriminator(images)
    assert scores.shape == (2,)
    assert classes.shape == (2, 2)
    (scores.sum() + classes.sum()).backward()
    assert all(p.grad is not None for p in (*generator.parameters(), *discriminator.parameters()))


def test_limits_are_8_to_64_px():
    assert (MIN_SIZE, MAX_SIZE) == (8, 64)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_noise_is_beside_the_label_never_under_it(classes):
    generator = ConditionalGANGenerator(tuple(map(str, range(classes))), (1, 8, 8), width=4)
    assert generator.start[0].in_features == classes + 90
    labels, normal = torch.tensor([0, classes - 1]), torch.randn(2, 90)
    code = generator.code(labels, normal)
    assert torch.equal(code[:, classes:], normal)
    assert torch.equal(code[:, :classes], torch.eye(classes)[labels])


def test_a_score_depends_on_its_own_image_alone():
    discriminator = Discriminator(3, (1, 8, 8), width=4)
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    whole = discriminator(images)
    images[1:] = -images[1:]
    changed = discriminator(images)
    for before, after in zip(whole, changed, strict=True):
        torch.testing.assert_close(before[0], after[0])
        assert not torch.allclose(before[1:], after[1:])


@pytest.mark.parametrize(
    ("words", "config"),
    [
        ("square.*8 to 64 px.*8x10", {"image_shape": (1, 8, 10)}),
        ("8 to 64 px.*7x7", {"image_shape": (1, 7, 7)}),
        ("8 to 64 px.*65x65", {"image_shape": (1, 65, 65)}),
        ("channels, not 2", {"image_shape": (2, 8, 8)}),
        ("classes, not 1", {"class_names": ("a",)}),
        ("width is 0", {"width": 0}),
        ("width is 1025", {"width": 1025}),
        ("noise_dim", {"noise_dim": -1}),
        ("noise_dim", {"noise_dim": 10**15}),
        ("strings", {"class_names": (1, 2)}),
        ("one finite value per channel", {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}),
        ("one finite value per channel", {"std": (1.0, 1.0)}),
        ("one finite value per channel", {"mean": (float("nan"),)}),
        ("one finite value per channel", {"std": (float("inf"),)}),
        ("above 0", {"std": (0.0,)}),
        ("different strings", {"class_names": ("a", "a")}),
        ("different strings", {"class_names": "ab"}),
        ("of one line", {"class_names": ("a", "b\n```")}),
        ("must be a mapping", {"training": "x"}),
    ],
)
def test_impossible_architectures_are_refused(words, config):
    with pytest.raises(ValueError, match=words):
        ConditionalGANGenerator(**{"class_names": NAMES, "image_shape": (1, 8, 8), "width": 4} | config)


# ---- sampling


def test_images_are_varied_bytes():
    generator = trained(shape=(3, 12, 12))
    images = generator.sample(*requests(20))
    assert images.dtype == torch.uint8
    assert images.shape == (60, 3, 12, 12)
    assert len(images.flatten(1).unique(dim=0)) == 60
    assert images.float().std() > 20


@pytest.mark.parametrize(("size", "count"), [(1, 12), (7, 70), (256, 300)])
def test_batches_change_no_pixel(size, count):
    generator = trained()
    labels, indices = requests(100)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:count]
    made = in_batches(generator, labels[order], indices[order], size)
    assert torch.equal(made, generator.sample(labels, indices)[order])


def test_batches_change_no_pixel_of_the_published_network():
    generator = trained(TEN, (3, 32, 32), width=196)
    labels, indices = torch.arange(70) % 10, torch.arange(70)
    whole = generator.sample(labels, indices)
    assert whole.float().std() > 20
    for part in (slice(66, 67), slice(30, 33)):
        assert torch.equal(generator.sample(labels[part], indices[part]), whole[part])


def test_every_forward_pass_has_one_size_and_no_graph(monkeypatch):
    """Kernels round differently for other batch sizes, which rarely moves a pixel, but does."""
    generator, rows, graphs = trained(), [], []
    forward = type(generator).forward

    def watched(self, code):
        rows.append(len(code))
        graphs.append(torch.is_grad_enabled())
        return forward(self, code)

    monkeypatch.setattr(type(generator), "forward", watched)
    for count in (1, 3, 64, 65, 200):
        generator.sample(torch.zeros(count, dtype=torch.int64), torch.arange(count))
    assert len(rows) == 1 + 1 + 1 + 2 + 4
    assert len(set(rows)) == 1
    assert not any(graphs)


def test_no_images_are_an_empty_tensor():
    none = torch.zeros(0, dtype=torch.int64)
    images = trained(shape=(3, 9, 9)).sample(none, none)
    assert images.shape == (0, 3, 9, 9)
    assert images.dtype == torch.uint8


@pytest.mark.parametrize("training", [True, False])
def test_sampling_leaves_no_trace(training):
    generator = trained().train(training)
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    torch.manual_seed(5)
    images = generator.sample(*requests(5))
    after_draw = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after_draw)
    assert generator.training is training
    assert all(module.training is training for module in generator.modules())
    for name, tensor in generator.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(images, generator.train(not training).sample(*requests(5)))


def test_a_failed_sample_restores_the_mode(monkeypatch):
    generator = trained().train()
    monkeypatch.setattr(type(generator), "make", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        generator.sample(*requests(1))
    assert generator.training


@pytest.mark.parametrize(
    ("words", "labels", "indices"),
    [
        (r"labels.*0\.\.2", [3], [0]),
        (r"labels.*0\.\.2", [-1, 0], [0, 0]),
        ("indices.*negative", [0, 1], [0, -1]),
        ("one length", [0, 1], [0]),
        ("1-D", [[0, 1]], [[0, 1]]),
    ],
)
def test_impossible_requests_are_refused(words, labels, indices):
    with pytest.raises(ValueError, match=words):
        trained().sample(torch.tensor(labels), torch.tensor(indices))


def test_indices_beyond_max_ipc_are_refused(monkeypatch):
    generator = trained()
    monkeypatch.setattr(generator, "max_ipc", 4)
    assert len(generator.sample(*requests(4))) == 12
    with pytest.raises(ValueError, match="4 images per class"):
        generator.sample(*requests(5))


def test_label_index_and_seed_each_change_the_image():
    generator = trained()

    def image(label=1, index=2, seed=3):
        return generator.sample(torch.tensor([label]), torch.tensor([index]), seed)

    assert torch.equal(image(), image())
    for change in ({"label": 2}, {"index": 3}, {"seed": 4}):
        assert not torch.equal(image(), image(**change))
    assert torch.equal(generator.sample(torch.tensor([1]), torch.tensor([2])), image(seed=0))


def test_truncation_scales_the_noise():
    generator = trained()
    labels, indices = requests(10)
    full, half, none = (generator.sample(labels, indices, sampling=Sampling(t)) for t in (1.0, 0.5, 0.0))
    assert torch.equal(full, generator.sample(labels, indices))
    assert not torch.equal(full, half)
    spread = [images.float().unflatten(0, (3, 10)).std(dim=1).mean() for images in (full, half, none)]
    assert spread[0] > spread[1] > spread[2] == 0
    assert len(none.flatten(1).unique(dim=0)) == 3


def test_the_generators_own_sampling_is_the_default():
    generator = trained()
    expected = generator.sample(*requests(3), sampling=Sampling(0.3))
    generator.sampling = Sampling(0.3)
    assert torch.equal(generator.sample(*requests(3)), expected)
    assert not torch.equal(generator.sample(*requests(3), sampling=Sampling()), expected)


@pytest.mark.parametrize("truncation", [-0.1, 2.1, float("nan")])
def test_truncation_out_of_range_is_refused(truncation):
    with pytest.raises(ValueError, match="truncation"):
        Sampling(truncation)


def test_labels_are_hard():
    assert trained().soft_labels(*requests(1)) is None


# ---- identity and folders


@pytest.mark.parametrize("name", ["start.0.weight", "start.0.bias", "blocks.1.running_var"])
def test_fingerprint_sees_every_weight_and_buffer(name):
    generator = trained()
    assert generator.fingerprint == trained().fingerprint
    generator.state_dict()[name].view(-1)[-1] += 1e-3
    assert generator.fingerprint != trained().fingerprint


def test_fingerprint_sees_the_shape_and_not_the_mode():
    prints = {trained(seed=seed, shape=shape).fingerprint for seed in (0, 1) for shape in ((1, 8, 8), (3, 8, 8))}
    assert len(prints) == 4
    assert trained().train().fingerprint in prints


def test_a_folder_keeps_pixels_and_config(tmp_path):
    generator = trained(
        shape=(3, 8, 8), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), training={"method": "dim", "seed": 4}
    )
    generator.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "grid.png",
        "README.md",
    }
    for source in (tmp_path, str(tmp_path)):
        loaded = AutoGenerator.from_pretrained(source)
        assert type(loaded) is ConditionalGANGenerator
        assert torch.equal(loaded.sample(*requests(5), seed=9), generator.sample(*requests(5), seed=9))
        assert loaded.class_names == NAMES
        assert loaded.image_shape == (3, 8, 8)
        assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert (loaded.method, loaded.seed) == ("dim", 4)
        assert loaded.fingerprint == generator.fingerprint
        assert loaded.stored_bytes == generator.stored_bytes > 4 * parameters(generator)
        assert loaded.report is None
        assert not loaded.training


def test_a_subfolder_loads(tmp_path):
    trained().save_pretrained(tmp_path / "inner")
    assert AutoGenerator.from_pretrained(tmp_path, subfolder="inner").fingerprint == trained().fingerprint


def test_an_untrained_generator_says_so():
    assert (trained().method, trained().seed) == ("untrained", None)


def test_the_report_travels_with_the_generator(tmp_path):
    generator = trained()
    generator.report = reported(generator)
    generator.save_pretrained(tmp_path)
    assert (tmp_path / "report.json").is_file()
    assert len(list(tmp_path.iterdir())) == 5
    assert AutoGenerator.from_pretrained(tmp_path).report == reported(generator)


def test_a_report_of_other_weights_is_not_saved(tmp_path, caplog):
    generator = trained()
    generator.report = reported(generator)
    generator.save_pretrained(tmp_path / "full")
    rounded = AutoGenerator.from_pretrained(tmp_path / "full", dtype="bfloat16")
    rounded.save_pretrained(tmp_path / "half")
    assert "report is of other weights" in caplog.text
    again = AutoGenerator.from_pretrained(tmp_path / "half")
    assert (again.dtype, again.report) == (torch.bfloat16, None)
    assert again.fingerprint == rounded.fingerprint
    with pytest.raises(ValueError, match="dtype is 'int8'; pass one of floating point"):
        AutoGenerator.from_pretrained(tmp_path / "full", dtype="int8")


def test_a_flipped_bit_is_found(tmp_path):
    trained().save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(LoadError, match=r"do not have the fingerprint that config.json names.*save them again"):
        AutoGenerator.from_pretrained(tmp_path)


def test_a_save_leaves_nothing_of_the_former(tmp_path):
    trained().save_pretrained(tmp_path, max_shard_size="3KB")
    assert (tmp_path / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert AutoGenerator.from_pretrained(tmp_path).fingerprint == trained().fingerprint
    trained(seed=1).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors*"))) == 1
    assert AutoGenerator.from_pretrained(tmp_path).fingerprint == trained(seed=1).fingerprint


def test_sampling_travels_with_the_generator(tmp_path):
    generator = trained()
    generator.sampling = Sampling(truncation=0.5)
    generator.save_pretrained(tmp_path)
    assert AutoGenerator.from_pretrained(tmp_path).sampling == Sampling(truncation=0.5)


def test_other_weights_do_not_inherit_a_report(tmp_path):
    generator = trained()
    generator.report = reported(generator)
    generator.save_pretrained(tmp_path)
    trained(seed=1).save_pretrained(tmp_path)
    assert AutoGenerator.from_pretrained(tmp_path).report is None


def test_the_grid_shows_the_first_images_a_class_a_row(tmp_path):
    generator = trained()
    generator.save_pretrained(tmp_path)
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    expected = np.asarray(image_grid(generator.sample(*requests(GRID_COLUMNS)), GRID_COLUMNS))
    assert picture.shape[0] == expected.shape[0] == 3 * 58
    assert np.array_equal(picture[:, -expected.shape[1] :], expected)  # the names stand before it


def test_a_grid_of_very_many_classes_stays_a_picture():
    generator = trained(names=tuple(f"{i}th" for i in range(150)))
    assert generator.grid().height == 100 * 58


def test_saving_and_pushing_in_one_call_is_refused(tmp_path):
    with pytest.raises(TypeError, match="push_to_hub"):
        trained().save_pretrained(tmp_path, push_to_hub=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_passed_on(tmp_path, dtype):
    generator = trained()
    generator.save_pretrained(tmp_path)
    loaded = AutoGenerator.from_pretrained(tmp_path, dtype=dtype, device="cpu")
    assert loaded.dtype == dtype
    off = (loaded.sample(*requests(5)).int() - generator.sample(*requests(5)).int()).abs().float().mean()
    assert off == 0 if dtype == torch.float32 else 0 < off < 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_cpu_half_precision_is_of_the_weights_alone(dtype):
    half = trained().to(dtype=dtype)
    whole = deepcopy(half).float()
    assert torch.equal(half.sample(*requests(5)), whole.sample(*requests(5)))
    assert half.dtype == dtype
