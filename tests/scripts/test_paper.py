"""The evidence is made piece by piece, stops in time, goes on anywhere, and is told as it was measured."""

import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml

from hf_gdd import AutoGenerator, GlobalLocalTrainer, Recipe
from hf_gdd.data.loading import DIGITS
from hf_gdd.generators.gan import ConditionalGANGenerator, Discriminator
from hf_gdd.report import Report, Result
from hf_gdd.utils.io import load_state, save_state

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def scripts():
    """`reproduce` and what it imports beside it, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        importlib.import_module("reproduce")
        found = {name: module for name, module in sys.modules.items() if (SCRIPTS / f"{name}.py").is_file()}
        yield found
        for name in found:
            del sys.modules[name]


@pytest.fixture
def small(scripts, monkeypatch):
    """A size on the digits that takes seconds."""
    evidence = scripts["evidence"]
    size = evidence.Size(
        training={"preset": "tiny", "width": 6, "checkpoint_every": 2, "keep_checkpoints": 9},
        steps=(6, 4),
        network="convnet1",
        recipe=Recipe(max_steps=4, batch_size=32, floor=0.0),
        seeds={"digits": (0, 1)},
        floors={"digits": 0.0},
        n=2,
    )
    monkeypatch.setitem(evidence.SIZES, "small", size)
    monkeypatch.setitem(evidence.DATA, "digits", ("digits", None))
    return size


@pytest.fixture
def bench(scripts, small, tmp_path):
    return scripts["pieces"].Bench(tmp_path / "runs", tmp_path / "results", {}, float("inf"))


def named(scripts, name):
    (piece,) = [piece for piece in scripts["evidence"].queue("small") if piece.name == f"small/digits/{name}"]
    return piece


def expired(bench, seconds=0.0):
    return replace(bench, deadline=time.monotonic() + seconds)


@pytest.mark.parametrize("size", ["paper", "lite"])
def test_the_queue_can_be_worked_off_in_its_order(scripts, size):
    pieces, done = scripts["evidence"].queue(size), set()
    for piece in pieces:
        assert set(piece.needs) <= done, piece.name
        done.add(piece)
    assert len({piece.name for piece in pieces}) == len(pieces)
    for data, seeds in (("fashion_mnist", 3), ("mnist", 3), ("cifar10", 1)):
        trained = {(p.variant, p.seed) for p in pieces if p.data == data and p.kind == "train"}
        assert {(name, seed) for name in scripts["evidence"].TABLE_1 for seed in range(seeds)} <= trained
    assert [piece.data for piece in pieces if piece.kind == "real"] == ["fashion_mnist", "mnist", "cifar10"]


def test_every_variant_can_be_trained(scripts):
    evidence = scripts["evidence"]
    for name, variant in evidence.VARIANTS.items():
        assert (variant.start is None) == (variant.method == "cgan"), name
        for size in evidence.SIZES.values():
            start = {"start_from": "there"} if variant.start else {}
            config = GlobalLocalTrainer.configure(**size.settings(variant), **start)
            assert (config.max_steps is None) == (size.steps[0] is None)


def test_all_is_done_and_told(scripts, bench, small):
    evidence, pieces = scripts["evidence"], scripts["evidence"].queue("small")
    assert {piece.kind for piece in pieces} == {"real", "train", "judge", "best5", "herding", "k-center"}
    scripts["reproduce"].work(bench, pieces)
    assert all(bench.result(piece).is_file() for piece in pieces)

    found = scripts["tables"].load(bench.results, "small")
    for name in evidence.TABLE_1:
        for protocol in (*evidence.PROTOCOLS, *evidence.BEST_5):
            rows = found.results("digits", name, protocol, 10)
            assert [row.generator_seed for row in rows] == [0, 1]
            assert all(len(row.accuracies) == small.n for row in rows)
    judged, trained = (
        json.loads(bench.result(named(scripts, f"dim-seed1-{kind}")).read_text()) for kind in ("judge", "train")
    )
    for made in (judged, trained):
        assert {"commit", "command", "device", "versions", "data", "caveats", "piece"} <= made.keys()
        assert made["data"]["source"] == "digits:train"
        assert made["piece"]["seed"] == 1
    assert trained["steps"] == 4
    assert trained["run"]["config"]["start_from"] == "cgan"
    assert trained["handed_over"] == trained["start_handed_over"] == trained["earlier_calls"] == []
    generator = AutoGenerator.from_pretrained(bench.generator(named(scripts, "dim-seed1-train")))
    assert generator.dtype == torch.float16
    assert generator.fingerprint == trained["fingerprint"]
    cgan = bench.folder(named(scripts, "cgan-seed1-train"))
    assert (cgan / "checkpoints" / "stage-gan.pt").is_file()
    for method in evidence.TABLE_1[1:]:  # all are tuned from one GAN
        run = bench.folder(named(scripts, f"{method}-seed1-train")) / "run.yaml"
        assert yaml.safe_load(run.read_text())["config"]["start_from"] == str(cgan)


def begun(scripts, bench, piece):
    """Let a training run out of time after a step or more."""
    trainer = scripts["pieces"].GlobalLocalTrainer
    plain = trainer.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "step", lambda self, indices: time.sleep(0.5) or plain(self, indices))
        with pytest.raises(scripts["pieces"].OutOfTimeError):
            expired(bench).run(piece)
    assert not bench.result(piece).is_file()
    checkpoint = sorted((bench.folder(piece) / "checkpoints").glob("step-*.pt"))[-1]
    return load_state(checkpoint)["at"]["total"]


def test_a_training_stops_in_time_and_goes_on(scripts, bench):
    piece = named(scripts, "cgan-seed0-train")
    assert 0 < begun(scripts, bench, piece) < 6
    bench.run(piece)
    assert json.loads(bench.result(piece).read_text())["steps"] == 6


def test_rows_that_are_there_are_not_made_again(scripts, bench, monkeypatch):
    piece, pieces = named(scripts, "herding"), scripts["pieces"]
    made, plain, clock = [], pieces.evaluate, [0.0]

    def evaluate(data, *args, **kwargs):
        made.append(len(data))
        clock[0] += 100
        return plain(data, *args, **kwargs)

    monkeypatch.setattr(pieces, "evaluate", evaluate)
    monkeypatch.setattr(pieces.time, "monotonic", lambda: clock[0])
    with pytest.raises(pieces.OutOfTimeError):
        replace(bench, deadline=150.0).run(piece)
    assert made == [10, 100]
    assert not bench.result(piece).is_file()
    bench.run(piece)
    assert made == [10, 100, 500]


def test_random_real_images_and_all_data_are_rows_of_their_own(scripts, bench, monkeypatch):
    """At paper size they take longer than a budget."""
    piece, pieces = named(scripts, "real"), scripts["pieces"]
    made, plain, clock = [], pieces.baselines, [0.0]

    def baselines(*args, ipcs, full_data, **kwargs):
        made.append((ipcs, full_data))
        clock[0] += 100
        return plain(*args, ipcs=ipcs, full_data=full_data, **kwargs)

    monkeypatch.setattr(pieces, "baselines", baselines)
    monkeypatch.setattr(pieces.time, "monotonic", lambda: clock[0])
    with pytest.raises(pieces.OutOfTimeError):
        replace(bench, deadline=150.0).run(piece)
    bench.run(piece)
    assert made == [((1,), False), ((10,), False), ((50,), False), ((), True)]


def test_rows_of_other_circumstances_are_made_anew(scripts, bench, monkeypatch):
    """A report holds rows that compare: of one machine, and of one generator."""
    pieces, train, judge = scripts["pieces"], named(scripts, "cgan-seed0-train"), named(scripts, "cgan-seed0-judge")
    for piece in (named(scripts, "real"), train, judge):
        bench.run(piece)
    first = json.loads(bench.result(judge).read_text())
    (bench.folder(judge) / "ipc1-fixed.json").unlink()
    plain = scripts["provenance"].now()
    monkeypatch.setattr(scripts["provenance"], "now", lambda: plain | {"device": "another", "commit": "later"})
    monkeypatch.setattr(pieces, "evaluate", lambda *args, **kwargs: made.append(args) or evaluate(*args, **kwargs))
    made, evaluate = [], sys.modules["hf_gdd"].evaluate
    bench.run(judge)
    assert len(made) == 6
    again = json.loads(bench.result(judge).read_text())
    assert again["device"] == "another"
    assert [call["device"] for call in again["earlier_calls"]] == [first["device"]]

    bench.run(named(scripts, "cgan-seed1-train"))
    other = AutoGenerator.from_pretrained(bench.generator(named(scripts, "cgan-seed1-train")))
    other.save_pretrained(bench.generator(train))
    with pytest.raises(ValueError, match=r"is not the generator that .*cgan-seed0-train.json tells of"):
        bench.run(judge)
    told = json.loads(bench.result(train).read_text())
    bench.result(train).write_text(json.dumps(told | {"fingerprint": other.fingerprint}))
    with pytest.raises(ValueError, match="is of another generator than"):
        bench.keep(judge, bench.runs)
    bench.run(judge)
    assert {row["generator"] for row in json.loads(bench.result(judge).read_text())["report"]["results"]} == {
        other.fingerprint
    }


def test_other_data_of_the_same_name_is_refused(scripts, bench, monkeypatch):
    bench.run(named(scripts, "herding"))
    data = scripts["pieces"].read("digits", "digits", None)
    other = replace(bench, local={"digits": "other"})
    read = lambda name, place, size: (data[1], data[0], place) if place == "other" else data  # noqa: E731
    monkeypatch.setattr(scripts["pieces"], "read", read)
    with pytest.raises(ValueError, match=r"digits as it is in other is not the data that .*herding.json was made of"):
        other.run(named(scripts, "k-center"))
    bench.run(named(scripts, "k-center"))
    path = bench.result(named(scripts, "herding"))
    path.write_text(path.read_text().replace(data[0].fingerprint, "0"))
    with pytest.raises(ValueError, match="k-center was made of other data than the pieces of digits before it"):
        scripts["results"].load(bench.results, "small")


def test_the_budget_ends_what_is_not_training_too(scripts, bench):
    """Setting up and saving know nothing of stopping."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(scripts["pieces"].OutOfTimeError), expired(bench).stopped_in_time():
        time.sleep(30)
    assert signal.getsignal(signal.SIGTERM) is before

    def other(signum, frame):
        raise RuntimeError("not the budget")

    signal.signal(signal.SIGTERM, other)
    try:
        with pytest.raises(RuntimeError, match="not the budget"), bench.stopped_in_time():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_judgement_is_of_the_half_precision_file(scripts, bench):
    """Its images are those of the file that is kept, not of the weights before they were rounded."""
    train, judge = named(scripts, "cgan-seed0-train"), named(scripts, "cgan-seed0-judge")
    bench.run(train)
    bench.run(judge)
    rows = json.loads(bench.result(judge).read_text())["report"]["results"]
    kept = AutoGenerator.from_pretrained(bench.generator(train))
    assert {row["generator"] for row in rows} == {kept.fingerprint}
    whole = AutoGenerator.from_pretrained(bench.folder(train) / "generator")
    assert whole.fingerprint != kept.fingerprint


@pytest.mark.parametrize("name", ["cgan", "global-local"])
def test_a_training_goes_on_elsewhere(scripts, bench, tmp_path, name):
    """From the weights it had here, and second moments that differ by their rounding."""
    piece = named(scripts, f"{name}-seed0-train")
    for need in piece.needs:
        bench.run(need)
    at = begun(scripts, bench, piece)
    state = f"checkpoints/step-{at:09d}.pt"
    here = load_state(bench.folder(piece) / state)
    with elsewhere(scripts, bench, piece, tmp_path) as there:
        state = load_state(there.folder(piece) / state)
        moments = [one["exp_avg_sq"] for one in here["optimizer_g"]["state"].values()]
        assert max(moment.max() for moment in moments) > 0
        for one, other in zip(flat(here), flat(state), strict=True):
            torch.testing.assert_close(other, one, rtol=2**-8, atol=0)
        for part in ("generator", "discriminator"):
            assert all(map(torch.equal, flat(here[part]), flat(state[part])))
        # Once more, when it has gone further here: nothing is taken back.
        there.run(piece)
        assert scripts["hand_over"].take_over(there, tmp_path / "travels") == []
        assert json.loads(bench.result(piece).read_text())["handed_over"] == [at]
        if piece.needs:
            assert scripts["reproduce"].state(there, named(scripts, "dim-seed0-train")) == "away"
    bench.run(piece)
    assert json.loads(bench.result(piece).read_text())["handed_over"] == []


def flat(state):
    """The tensors of a state in order, without the first moments that count for nothing."""
    if isinstance(state, torch.Tensor):
        return [state.float()]
    parts = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    return [tensor for key, part in parts if key != "exp_avg" for tensor in flat(part)]


def test_a_stage_is_taken_on_elsewhere(scripts, bench, tmp_path):
    """A training that has yet to begin needs the GAN it starts from, and no more of that run."""
    piece = named(scripts, "dim-seed0-train")
    bench.run(piece.needs[0])
    with elsewhere(scripts, bench, piece, tmp_path) as there:
        there.run(piece)
        assert [path.name for path in there.folder(piece.needs[0]).glob("checkpoints/*")] == ["stage-gan.pt"]
        told = json.loads(bench.result(piece).read_text())
        assert (told["handed_over"], told["start_handed_over"]) == ([], [6])
    exact = bench.folder(piece.needs[0]) / "checkpoints" / "stage-gan.pt"
    before = exact.read_bytes()
    scripts["hand_over"].take_over(bench, tmp_path / "travels")
    assert exact.read_bytes() == before


def test_a_judgement_goes_on_elsewhere(scripts, bench, tmp_path, monkeypatch):
    """With the rows that are there, if it is the same kind of machine."""
    train, judge = named(scripts, "cgan-seed0-train"), named(scripts, "cgan-seed0-judge")
    bench.run(train)
    pieces, clock, made = scripts["pieces"], [0.0], []
    plain = pieces.evaluate

    def evaluate(*args, ipc, protocol, **kwargs):
        clock[0] += 100
        made.append((ipc, protocol))
        return plain(*args, ipc=ipc, protocol=protocol, **kwargs)

    monkeypatch.setattr(pieces, "evaluate", evaluate)
    monkeypatch.setattr(pieces.time, "monotonic", lambda: clock[0])
    with pytest.raises(pieces.OutOfTimeError):
        replace(bench, deadline=150.0).run(judge)
    with elsewhere(scripts, bench, judge, tmp_path) as there:
        there.run(judge)
    every = [(ipc, protocol) for ipc in judge.ipcs for protocol in judge.protocols]
    assert made == every
    rows = json.loads(bench.result(judge).read_text())["report"]["results"]
    assert [(row["ipc"], row["protocol"]) for row in rows] == every


@contextmanager
def elsewhere(scripts, bench, piece, tmp_path):
    """On a machine that has been given what a piece needs, and else has the results and its own copy of the data."""
    hand_over, travels, copy = scripts["hand_over"], tmp_path / "travels", tmp_path / "there" / "copy"
    shutil.copytree(DIGITS, copy)
    there = replace(bench, runs=tmp_path / "there" / "queue", local={"digits": str(copy)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hand_over, "PART", 10_000)
        _, size = hand_over.hand_over(bench, piece, travels)
        assert {path.stat().st_size for path in sorted(travels.glob("part-*"))[:-1]} == {10_000}
        assert size == sum(path.stat().st_size for path in travels.iterdir())
        hand_over.take_over(there, travels)
        yield there


def test_what_needs_a_generator_of_elsewhere_is_not_tried_but_told(scripts, bench, small, monkeypatch, capsys):
    """Results travel with the repository, runs do not."""
    train, judge = named(scripts, "cgan-seed0-train"), named(scripts, "cgan-seed0-judge")
    bench.run(train)
    here = replace(bench, runs=bench.runs / "empty")
    reproduce, pieces = scripts["reproduce"], [judge, named(scripts, "dim-seed0-train")]
    assert [reproduce.state(bench, piece) for piece in pieces] == ["open", "open"]
    assert [reproduce.state(here, piece) for piece in pieces] == ["away", "away"]
    reproduce.work(here, pieces)
    assert not any(here.result(piece).is_file() for piece in pieces)
    told = capsys.readouterr().out
    assert all(word in told for word in ("another machine", *(piece.name for piece in pieces)))


def test_too_much_does_not_travel(scripts, bench, tmp_path, monkeypatch):
    monkeypatch.setattr(scripts["hand_over"], "MOST", 1000)
    piece = named(scripts, "dim-seed0-train")
    bench.run(piece.needs[0])
    with pytest.raises(ValueError, match=r"dim-seed0-train needs .* bytes elsewhere, but at most 1,000 may travel"):
        scripts["hand_over"].hand_over(bench, piece, tmp_path / "travels")


def test_a_hand_over_is_whole_or_not_taken(scripts, bench, tmp_path, monkeypatch):
    hand_over, piece, travels = scripts["hand_over"], named(scripts, "dim-seed0-train"), tmp_path / "travels"
    hand_over.hand_over(bench, named(scripts, "real"), travels)  # which needs nothing
    assert hand_over.take_over(bench, travels) == []
    bench.run(piece.needs[0])
    hand_over.hand_over(bench, piece, travels)
    before = {path.name: path.read_bytes() for path in travels.iterdir()}
    monkeypatch.setattr(hand_over, "MOST", 1000)
    with pytest.raises(ValueError, match="may travel"):
        hand_over.hand_over(bench, piece, travels)
    assert {path.name: path.read_bytes() for path in travels.iterdir()} == before
    assert not travels.with_name("travels.part").exists()
    there = replace(bench, runs=tmp_path / "there")
    with there.claimed(piece.needs[0].name), pytest.raises(ValueError, match="Another program is at one of"):
        hand_over.take_over(there, travels)
    (travels / "part-000").write_bytes(before["part-000"][:-1])
    with pytest.raises(ValueError, match=r"A part is missing .* or was changed"):
        hand_over.take_over(there, travels)
    files = [["../digits/run.yaml", len(before["part-000"])]]
    for list_of, told in ((files, "names ../digits/run.yaml, which is no file of a run"), ([], "was changed")):
        (travels / "part-000").write_bytes(before["part-000"])
        found = {"files": list_of, "sha256": hand_over.checksum(files, before["part-000"])}
        (travels / "files.json").write_text(json.dumps(found))
        with pytest.raises(ValueError, match=told):
            hand_over.take_over(there, travels)
    (travels / "files.json").write_text("[]")
    with pytest.raises(ValueError, match=r"files.json is damaged, or of another version"):
        hand_over.take_over(there, travels)
    with pytest.raises(ValueError, match="holds nothing that was handed over"):
        hand_over.take_over(there, tmp_path)
    (travels / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"holds thesis.txt: name an empty folder"):
        hand_over.hand_over(bench, piece, travels)
    assert (travels / "thesis.txt").exists()


def test_the_latest_state_that_may_travel_does(scripts, bench, small, tmp_path, monkeypatch):
    """Where the pool is to draw a fresh network a state is smaller than after the next step."""
    training = small.training | {"checkpoint_every": 1, "pool_refresh": 2, "pool": ("resnet10-dd",)}
    monkeypatch.setitem(scripts["evidence"].SIZES, "small", replace(small, training=training))
    piece, hand_over = named(scripts, "dim-seed0-train"), scripts["hand_over"]
    for each in (*piece.needs, piece):
        bench.run(each)
    bench.result(piece).unlink()
    (bench.folder(piece) / "checkpoints" / "step-000000004.pt").unlink()
    went, most = [], float("inf")
    for _ in range(3):
        monkeypatch.setattr(hand_over, "MOST", most)
        went.append(hand_over.hand_over(bench, piece, tmp_path / "travels"))
        most = went[-1][1] - 1
    assert [step for step, _ in went] == [3, 2, 0]
    assert went[0][1] > went[1][1] + 5_000_000


def test_the_published_gan_may_travel(scripts, tmp_path):
    """Its weights and second moments, without the first, which count for nothing, are 40.3 MB."""
    networks = (
        ConditionalGANGenerator(tuple("0123456789"), (3, 32, 32)),
        Discriminator(10, (3, 32, 32)),
    )
    state = {}
    for number, network in enumerate(networks):
        adam = torch.optim.Adam(network.parameters(), betas=(0.0, 0.9))
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        adam.step()
        state |= {f"network {number}": network.state_dict(), f"optimizer {number}": adam.state_dict()}
    hand_over = scripts["hand_over"]
    save_state(tmp_path / "state.pt", hand_over.compact(state))
    assert hand_over.MOST * 0.9 < (tmp_path / "state.pt").stat().st_size < hand_over.MOST


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_moments_travel_in_half_precision(scripts, beta):
    hand_over, torch_random = scripts["hand_over"], torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(300, generator=torch_random))
    adam = torch.optim.Adam([weight], lr=0.1, betas=(beta, 0.9))
    weight.grad = 1e-6 * torch.randn(300, generator=torch_random)
    adam.step()
    state = {"weights": {"w": weight.detach()}, "optimizer": adam.state_dict(), "at": {"total": 1}}
    compact = hand_over.compact(state)
    assert compact["weights"]["w"] is state["weights"]["w"]
    assert compact["optimizer"]["state"][0]["exp_avg_sq"].dtype == torch.bfloat16
    assert (compact["optimizer"]["state"][0]["exp_avg"] is None) == (beta == 0)
    ends = []
    for moments in (state["optimizer"], hand_over.whole(compact)["optimizer"]):
        copy = torch.nn.Parameter(weight.detach().clone())
        adam = torch.optim.Adam([copy], lr=0.1, betas=(beta, 0.9))
        adam.load_state_dict(deepcopy(moments))
        assert adam.state[copy]["exp_avg_sq"].dtype == torch.float32
        copy.grad = torch.full((300,), 1e-6)
        adam.step()
        ends.append(copy.detach() - weight.detach())
    torch.testing.assert_close(*ends, rtol=0.01, atol=1e-3)
    assert ends[0].abs().min() > 0.001 or beta


def test_selections_follow_their_rules(scripts):
    """On a line: herding balances its choices about the mean, k-center goes for what is farthest from them."""
    points = torch.tensor([[0.0], [1.0], [4.0], [5.0], [15.0]])  # the mean is 5
    selection = scripts["selection"]
    assert selection.herding(points, 4).tolist() == [3, 2, 1, 4]  # the nearest four are 3, 2, 1, 0
    assert selection.k_center(points, 3).tolist() == [3, 4, 0]
    labels = torch.tensor([1, 0, 1, 0, 1])
    assert [rows.tolist() for rows in selection.selected("k-center", points, labels, 2)] == [[1, 3], [2, 4]]


def test_a_kept_generator_has_its_card_with_baselines(scripts, bench, tmp_path):
    for name in ("real", "cgan-seed0-train", "cgan-seed0-judge"):
        bench.run(named(scripts, name))
    place = bench.keep(named(scripts, "cgan-seed0-judge"), tmp_path)
    assert place.name == "digits-cgan-small"
    kept = AutoGenerator.from_pretrained(place)
    assert kept.dtype == torch.float16
    assert {row.name for row in kept.report.results} == {"cgan", "random-real", "full data"}
    assert (place / "grid.png").is_file()


def test_only_one_program_does_a_piece(scripts, bench, tmp_path):
    piece, reproduce = named(scripts, "real"), scripts["reproduce"]
    with bench.claimed(piece.name) as mine, bench.claimed(piece.name) as again:
        assert mine
        assert not again
        reproduce.work(bench, [piece])
        assert not bench.result(piece).exists()
        assert reproduce.pack(bench, [piece], tmp_path / "travels").startswith("Nothing is to be handed over")
    reproduce.work(bench, [piece])
    assert bench.result(piece).exists()


def test_all_that_is_asked_for_is_done_in_order(scripts, bench, tmp_path, monkeypatch, capsys):
    reproduce, root = scripts["reproduce"], tmp_path / "root"
    (root / "model_cards").mkdir(parents=True)
    monkeypatch.setattr(reproduce, "CARDS", root / "model_cards")
    place = {"size": "small", "runs": bench.runs, "results": bench.results}
    reproduce.main(**place, next=True, only="seed0")
    reproduce.main(**place, keep=True)
    assert "digits-global-local-small: not judged yet, or not on this machine" in capsys.readouterr().out
    reproduce.main(**place, next=True, only="real")
    reproduce.main(**place, hand_over_to=tmp_path / "travels", keep=True, list=True)
    told = capsys.readouterr().out
    assert "small/digits/herding: " in told
    assert f"{root / 'model_cards' / 'digits-global-local-small'}\n" in told
    assert "done   small/digits/real\n" in told
    assert "open   small/digits/cgan-seed1-train\n" in told
    assert (root / "model_cards" / "digits-global-local-small" / "README.md").is_file()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, "Nothing to do: say --list, --next"),
        ({"list": True, "only": "fashon"}, "--only fashon: no piece of size small has this in its name"),
        ({"list": True, "data": (("fashion-mnist", "."),)}, "there is no such data set here, only .*fashion_mnist"),
        ({"list": True, "data": (("mnist", "nowhere"),)}, "--data mnist nowhere: there is no such folder"),
        ({"list": True, "data": (("mnist", "."), ("mnist", "."))}, "--data mnist is given twice"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(scripts, bench, asked, told):
    with pytest.raises(SystemExit, match=told):
        scripts["reproduce"].main(size="small", runs=bench.runs, results=bench.results, **asked)


def test_a_fault_is_told_without_a_traceback(tmp_path):
    command = [sys.executable, SCRIPTS / "reproduce.py", "--take-over-from", tmp_path, "--results", tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: {tmp_path} holds nothing that was handed over")


def test_what_is_too_early_is_told(scripts, bench, capsys):
    reproduce = scripts["reproduce"]
    reproduce.work(bench, [named(scripts, "dim-seed0-judge")])
    assert "small/digits/dim-seed0-judge" in capsys.readouterr().out


def judged(scripts, variant, seed, accuracies):
    """What a judgement of one row leaves."""
    row = Result(
        name=variant,
        protocol="fixed",
        network="convnet3",
        ipc=1,
        accuracies=accuracies,
        seeds=tuple(range(len(accuracies))),
        generator_seed=seed,
        steps=1,
        distinct_images=10,
        stored_bytes=1,
        seconds=60.0,
    )
    recipe = asdict(scripts["evidence"].SIZES["paper"].judged_by("mnist")) | {"epochs_up_to": []}
    report = Report((row,), "real", "test", recipe, "real", "CPU")
    told = {"commit": "0123456789-dirty", "device": "CPU", "versions": {"torch": "2"}, "caveats": ["A copy."]}
    return scripts["evidence"].Piece("paper", "mnist", "judge", variant, seed), told | {"report": report}


def test_tables_keep_generators_and_networks_apart_and_pair_seeds(scripts):
    tables = scripts["tables"]
    made = [
        judged(scripts, "dim", 0, (0.5, 0.7)),
        judged(scripts, "dim", 1, (0.7, 0.9)),
        judged(scripts, "cgan-continued", 0, (0.5, 0.5)),
        judged(scripts, "cgan-continued", 2, (0.1, 0.1)),  # of a seed that the other has not been run with
    ]
    found = tables.Found("paper", dict(made))
    fixed, dynamic = (told(tables.table_1(found, "mnist", protocol)) for protocol in ("fixed", "dynamic"))
    assert fixed["dim"]["paper, IPC 1"] == "70.0 ± 14.1 (14.1)"
    assert fixed["dim"]["generators"] == "2"
    assert fixed["dim"]["paper, IPC 10"] == dynamic["dim"]["paper, IPC 1"] == "not run"
    # What was published of generators was measured on fresh images.
    assert (fixed["dim"]["published, IPC 1"], dynamic["dim"]["published, IPC 1"]) == ("-", "96.5 (0.6)")
    assert fixed["random-real"]["published, IPC 1"] == dynamic["random-real, `fixed`"]["published, IPC 1"]
    assert dynamic["cgan-continued"]["published, IPC 1"] == "-"
    gains = tables.differences(found, "mnist")
    assert "| dim - cgan-continued | fixed | 1 | +10.0 (14.1) | not run | not run |" in gains
    circumstances = tables.circumstances(found)
    assert "0 minutes of training, 4 of judging" in circumstances
    assert circumstances.endswith("commit 0123456-dirty. A copy.")


def test_the_verdict_is_that_of_the_means(scripts, monkeypatch):
    tables = scripts["tables"]
    monkeypatch.setattr(tables, "IPCS", (1,))
    monkeypatch.setattr(tables, "PROTOCOLS", ("fixed",))
    made = [judged(scripts, name, 0, (0.6, 0.8)) for name in tables.TABLE_1]
    assert tables.verdict(tables.Found("paper", dict(made)), "mnist") == ""  # there is nothing to hold them against
    for accuracy, where in ((0.69, "at no IPC."), (0.71, "at IPC 1.")):
        found = tables.Found("paper", dict([*made, judged(scripts, "random-real", 0, (accuracy, accuracy))]))
        assert tables.verdict(found, "mnist").endswith(f"every generator here under `fixed` {where}")


def told(table):
    """Cells of a table by its rows' and its columns' names."""
    head, _, *rows = (line[2:-2].split(" | ") for line in table.splitlines())
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


@pytest.mark.parametrize("kind", ["train", "judge"])
def test_a_size_that_was_changed_is_not_told_of_what_was_made_before(scripts, bench, small, monkeypatch, kind):
    piece = named(scripts, f"cgan-seed0-{kind}")
    for each in (*piece.needs, piece):
        bench.run(each)
    sizes, load = scripts["evidence"].SIZES, scripts["results"].load
    load(bench.results, "small")
    monkeypatch.setitem(sizes, "small", replace(small, floors={"digits": 0.5}))
    load(bench.results, "small")  # which changes no row
    changes = {"train": {"training": small.training | {"width": 8}}, "judge": {"network": "convnet2"}}
    monkeypatch.setitem(sizes, "small", replace(small, **changes[kind]))
    with pytest.raises(ValueError, match=f"cgan-seed0-{kind} was made with .*, but size small says"):
        load(bench.results, "small")


def test_a_kept_card_tells_what_the_evidence_tells(scripts):
    cards, evidence = SCRIPTS.parent / "model_cards", scripts["evidence"]
    folders = {}
    for size in evidence.SIZES:
        for judge in evidence.kept(size):
            if (cards / judge.card).is_dir():
                folders[judge] = cards / judge.card
    for judge, folder in folders.items():
        pieces = (replace(judge, kind="real", variant=None, seed=0), judge, *judge.needs)
        real, judged, trained = (
            json.loads((cards / "evidence" / f"{piece.name}.json").read_text()) for piece in pieces
        )
        rows = [*real["report"]["results"], *judged["report"]["results"]]
        assert json.loads((folder / "report.json").read_text())["results"] == rows
        assert AutoGenerator.from_pretrained(folder).fingerprint == trained["fingerprint"]
    assert bool(folders) == any(cards.glob("evidence/*/*/*-judge.json"))


def test_what_is_committed_is_what_the_json_gives(scripts):
    root, tables = SCRIPTS.parent, scripts["tables"]
    found = [tables.load(root / "model_cards" / "evidence", size) for size in scripts["evidence"].SIZES]
    told = dict(tables.pages(found, root))
    assert bool(told) == any((root / "model_cards").glob("evidence/*/*/*.json"))
    assert (root / "README.md" in told) == ("\n## Results\n" in (root / "README.md").read_text())
    for path, text in told.items():
        assert path.read_text() == text


def test_results_take_their_place_in_readme(scripts):
    tables = scripts["tables"]
    once = tables.with_results("# A\n\n## B\n\nb\n\n## Methods\n\nm\n", "r")
    assert once == "# A\n\n## B\n\nb\n\n## Results\n\nr\n\n## Methods\n\nm\n"
    assert tables.with_results(once, "other") == once.replace("\nr\n", "\nother\n")
