"""The state of a piece of work in files that travel to another machine: weights whole, moments in half precision.

The first moments of an Adam whose first beta is zero are not taken along: the next step overwrites them.
"""

import io
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import yaml
from evidence import Piece
from pieces import CALLS, Bench
from torch import Tensor

from hf_gdd.training.run_folder import RUN_FILE, stage_file
from hf_gdd.utils.io import load_state, save_state

PART, MOST = 15 * 2**20, 40 * 2**20  # bytes of a file, and of all of them
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
NAMES, PARTS = "files.json", "part-{}"
PLACE = re.compile(r"\w[^/]*(/\w[^/]*)+")  # no way out of the folder of runs


def hand_over(bench: Bench, piece: Piece, folder: Path) -> tuple[int, int]:
    """Write what `piece` needs to begin or to go on elsewhere, from the latest of its states that may travel.

    Returns:
        The step after which it goes on, 0 if it begins anew, and the bytes.

    Raises:
        ValueError: even what it begins with is more than may travel, or the folder holds something else.

    """
    other = [path.name for path in folder.glob("*") if path.name != NAMES and not path.match(PARTS.format("*"))]
    if other:
        raise ValueError(f"{folder} holds {other[0]}: name an empty folder, or one that was handed over.")
    part = folder.with_name(folder.name + ".part")
    states = sorted((bench.folder(piece) / "checkpoints").glob("step-*.pt"), reverse=True)
    for state in (*states, None) if piece.kind == "train" else (None,):
        size = pack_files(part, needed(bench, piece, state), bench.runs)
        if size <= MOST:
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
            return step_of(state), size
    shutil.rmtree(part)
    raise ValueError(f"{piece.name} needs {size:,} bytes elsewhere, but at most {MOST:,} may travel.")


def pack_files(folder: Path, paths: list[Path], runs: Path) -> int:
    """Write files of the folder of all runs in parts that are not too large; returns the bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = [(path.relative_to(runs).as_posix(), travelling(path)) for path in paths]
    packed = b"".join(each for _, each in found)
    for number, start in enumerate(range(0, len(packed), PART)):
        (folder / PARTS.format(f"{number:03}")).write_bytes(packed[start : start + PART])
    files = [(place, len(each)) for place, each in found]
    (folder / NAMES).write_text(json.dumps({"files": files, "sha256": checksum(files, packed)}))
    return sum(path.stat().st_size for path in folder.iterdir())


def checksum(files: Sequence[Any], packed: bytes) -> str:
    """Of what is handed over, and of the list of it."""
    return sha256(json.dumps(files).encode() + packed).hexdigest()


def travelling(path: Path) -> bytes:
    """A file as it travels; of a state with small moments."""
    if path.suffix != ".pt":
        return path.read_bytes()
    torch.save(compact(load_state(path)), packed := io.BytesIO())
    return packed.getvalue()


def take_over(bench: Bench, folder: Path) -> list[str]:
    """Put what `hand_over` wrote where `bench` looks for it, but for what is there or went further; returns its files.

    Raises:
        ValueError: there is nothing of the kind, a part is missing or was changed, or another program is at such a
            piece.

    """
    if not (folder / NAMES).is_file():
        raise ValueError(f"{folder} holds nothing that was handed over: name the folder that --hand-over-to wrote.")
    contents = b"".join(path.read_bytes() for path in sorted(folder.glob(PARTS.format("*"))))
    try:
        told = json.loads((folder / NAMES).read_text())
        found, expected = told["files"], told["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / NAMES} is damaged, or of another version: hand over again.") from error
    if checksum(found, contents) != expected:
        raise ValueError(f"A part is missing in {folder}, or was changed: copy all of what was handed over again.")
    if outside := [place for place, _ in found if not PLACE.fullmatch(place)]:
        raise ValueError(f"{folder} names {outside[0]}, which is no file of a run: this was not handed over.")
    incoming = {piece_of(place): 0 for place, _ in found}
    incoming |= {piece_of(place): step_of(Path(place)) for place, _ in found if "/step-" in place}
    taken, start = [], 0
    with ExitStack() as claims:
        if not all(claims.enter_context(bench.claimed(name)) for name in incoming):
            raise ValueError(f"Another program is at one of {', '.join(incoming)}: take over when it has stopped.")
        here = {name: newest(bench.runs / name) for name in incoming}
        for place, length in found:
            path, name = bench.runs / place, piece_of(place)
            if here[name] < incoming[name] or not (incoming[name] or path.exists()):
                put(path, contents[start : start + length], bench.runs)
                taken.append(place)
            start += length
    return taken


def put(path: Path, content: bytes, runs: Path) -> None:
    """Write a file whole or not at all; a state with its moments, a run with where the one it starts from lies here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    if path.name == RUN_FILE and (start := (run := yaml.safe_load(content))["config"].get("start_from")):
        run["config"]["start_from"] = str(runs.joinpath(*Path(start).parts[-3:]))
        part.write_text(yaml.safe_dump(run, sort_keys=False))
    if path.suffix == ".pt":
        state = whole(load_state(part))
        save_state(part, state)
        record(path, state)
    part.replace(path)


def piece_of(place: str) -> str:
    """The name of the piece that a file of the folder of all runs belongs to."""
    return "/".join(Path(place).parts[:3]).removesuffix(CALLS)


def step_of(state: Path | None) -> int:
    """After which step a state was saved, as its name tells."""
    return int(state.stem.removeprefix("step-")) if state else 0


def newest(run: Path) -> int:
    """The step of the last state of a run, 0 if there is none."""
    return max(map(step_of, (run / "checkpoints").glob("step-*.pt")), default=0)


def needed(bench: Bench, piece: Piece, state: Path | None) -> list[Path]:
    """Files that a piece begins with, or a training goes on with after `state`."""
    paths = [bench.runs / f"{piece.name}{CALLS}"]
    if piece.kind == "train":
        if state:
            run = bench.folder(piece)
            paths += [*(run / name for name in ("run.yaml", "metrics.jsonl", "handed_over.json")), state]
        for start in piece.needs:  # whose settings are read again even by a run that has begun
            folder = bench.folder(start)
            paths += [folder / "run.yaml"] + [stage_file(folder, "gan")] * (not state)
    else:
        for generator in piece.needs:
            paths += sorted(bench.generator(generator).iterdir())
        paths += sorted(bench.folder(piece).glob("*.json"))  # rows that are there already
    return [path for path in paths if path.is_file()]


def compact(state: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint with moments in bfloat16, whose range is that of float32."""
    return changed(state, lambda name, moment, beta: None if name == "exp_avg" and not beta else moment.bfloat16())


def whole(state: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint that a run can go on from."""
    return changed(state, lambda name, moment, beta: moment.float())


def changed(state: Any, change: Callable[[str, Tensor, float | None], Tensor | None]) -> Any:
    """A copy in which the moments of every optimizer are what `change` makes of them, told the first beta, if any."""
    if not isinstance(state, Mapping):
        return state
    if {"state", "param_groups"} <= state.keys():
        beta = state["param_groups"][0].get("betas", (None,))[0]
        return state | {
            "state": {number: moments(kept, beta, change) for number, kept in state["state"].items()},
        }
    return {name: changed(part, change) for name, part in state.items()}


def moments(kept: Mapping[str, Any], beta: float | None, change: Callable[..., Tensor | None]) -> dict[str, Any]:
    """What an optimizer knows of one parameter; a moment that was left out is zero."""
    found = dict(kept)
    for name in MOMENTS:
        if isinstance(moment := kept.get(name), Tensor):
            found[name] = change(name, moment, beta)
        elif name in kept:
            found[name] = torch.zeros_like(kept["exp_avg_sq"], dtype=torch.float32)
    return found


def record(path: Path, state: Mapping[str, Any]) -> None:
    """Note in the run's folder after which step its state traveled."""
    note = path.parent.parent / "handed_over.json"
    steps = json.loads(note.read_text()) if note.is_file() else []
    note.write_text(json.dumps([*steps, state["at"]["total"]]))
