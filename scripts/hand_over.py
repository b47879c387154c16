"""The state of a piece of work in files that travel to another machine: weights whole, moments in half precision.

The first moments of an Adam whose first beta is zero are not taken along: the next step overwrites them.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from evidence import Piece
from pieces import Bench
from torch import Tensor

from hf_gdd.runs import load_state, save_state, stage_file

PART, MOST = 15 * 2**20, 40 * 2**20  # bytes of a file, and of all of them
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
NAMES, PARTS = "files.json", "part-{:03}"


def hand_over(bench: Bench, piece: Piece, folder: Path) -> tuple[int, int]:
    """Write what `piece` needs to begin or to go on elsewhere, from the latest of its states that may travel.

    Returns:
        The step after which it goes on, 0 if it begins anew, and the bytes.

    Raises:
        ValueError: even what it begins with is more than may travel.

    """
    states = sorted((bench.folder(piece) / "checkpoints").glob("step-*.pt"), reverse=True)
    for state in (*states, None) if piece.kind == "train" else (None,):
        size = write(folder, needed(bench, piece, state), bench.runs)
        if size <= MOST:
            return load_state(state)["at"]["total"] if state else 0, size
    raise ValueError(f"{piece.name} needs {size:,} bytes elsewhere, but at most {MOST:,} may travel.")


def write(folder: Path, paths: list[Path], runs: Path) -> int:
    """Pack files of the folder of all runs; returns the bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    packed = folder / "packed.pt"
    for path in paths:
        place = path.relative_to(runs).as_posix()
        if path.suffix == ".pt":
            save_state(packed, compact(load_state(path)))
            append(folder, place, packed.read_bytes())
            packed.unlink()
        else:
            append(folder, place, path.read_bytes())
    return sum(path.stat().st_size for path in folder.iterdir())


def take_over(bench: Bench, folder: Path) -> list[str]:
    """Put what `hand_over` wrote where `bench` looks for it; returns the files' names."""
    contents = b"".join(path.read_bytes() for path in sorted(folder.glob(PARTS.format(0)[:-3] + "*")))
    found, start = json.loads((folder / NAMES).read_text()), 0
    for place, length in found:
        path = bench.runs / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[start : start + length])
        start += length
        if path.suffix == ".pt":
            state = whole(load_state(path))
            save_state(path, state)
            record(path, state)
    return [place for place, _ in found]


def needed(bench: Bench, piece: Piece, state: Path | None) -> list[Path]:
    """Files that a piece begins with, or a training goes on with after `state`."""
    paths = []
    if piece.kind == "train":
        if state:
            run = bench.folder(piece)
            paths += [state, *(run / name for name in ("run.yaml", "metrics.jsonl", "handed_over.json"))]
        for start in piece.needs:  # whose settings are read again even by a run that has begun
            folder = bench.folder(start)
            paths += [folder / "run.yaml"] + [stage_file(folder, "gan")] * (not state)
    else:
        for generator in piece.needs:
            paths += sorted(bench.generator(generator).iterdir())
        paths += sorted(bench.folder(piece).glob("*.json"))  # rows that are there already
    return [path for path in paths if path.is_file()]


def append(folder: Path, place: str, content: bytes) -> None:
    """Write on where the last part ends, in parts that are not too large."""
    names = folder / NAMES
    found = json.loads(names.read_text()) if names.is_file() else []
    start = sum(length for _, length in found)
    names.write_text(json.dumps([*found, (place, len(content))]))
    while content:
        room = PART - start % PART
        with (folder / PARTS.format(start // PART)).open("ab") as file:
            file.write(content[:room])
        start, content = start + len(content[:room]), content[room:]


def compact(state: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint with moments in bfloat16, whose range is that of float32."""
    return changed(state, lambda name, moment, beta: None if name == "exp_avg" and not beta else moment.bfloat16())


def whole(state: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint that a run can go on from."""
    return changed(state, lambda name, moment, beta: moment.float())


def changed(state: Any, change: Callable[[str, Tensor, float | None], Tensor | None]) -> Any:
    """A copy in which the moments of every optimiser are what `change` makes of them, told the first beta, if any."""
    if not isinstance(state, Mapping):
        return state
    if {"state", "param_groups"} <= state.keys():
        beta = state["param_groups"][0].get("betas", (None,))[0]
        return state | {
            "state": {number: moments(kept, beta, change) for number, kept in state["state"].items()},
        }
    return {name: changed(part, change) for name, part in state.items()}


def moments(kept: Mapping[str, Any], beta: float | None, change: Callable[..., Tensor | None]) -> dict[str, Any]:
    """What an optimiser knows of one parameter; a moment that was left out is zero."""
    found = dict(kept)
    for name in MOMENTS:
        if isinstance(moment := kept.get(name), Tensor):
            found[name] = change(name, moment, beta)
        elif name in kept:
            found[name] = torch.zeros_like(kept["exp_avg_sq"], dtype=torch.float32)
    return found


def record(path: Path, state: Mapping[str, Any]) -> None:
    """Note in the run's folder after which step its state travelled."""
    note = path.parent.parent / "handed_over.json"
    steps = json.loads(note.read_text()) if note.is_file() else []
    note.write_text(json.dumps([*steps, state["at"]["total"]]))
