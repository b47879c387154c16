"""The state of a piece of work in files that travel to another machine: weights whole, moments in half precision.

The first moments of an Adam whose first beta is zero are not taken along: the next step overwrites them.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from evidence import Piece
from pieces import CALLS, Bench
from torch import Tensor

from hf_gdd.runs import load_state, save_state, stage_file

PART, MOST = 15 * 2**20, 40 * 2**20  # bytes of a file, and of all of them
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
NAMES, PARTS = "files.json", "part-{}"


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
        size = write(part, needed(bench, piece, state), bench.runs)
        if size <= MOST:
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
            return step_of(state), size
    shutil.rmtree(part)
    raise ValueError(f"{piece.name} needs {size:,} bytes elsewhere, but at most {MOST:,} may travel.")


def write(folder: Path, paths: list[Path], runs: Path) -> int:
    """Pack files of the folder of all runs; returns the bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / NAMES).write_text("[]")
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
    """Put what `hand_over` wrote where `bench` looks for it, but for what is there or went further; returns its files.

    Raises:
        ValueError: a part is missing or cut, or another program is at such a piece.

    """
    contents = b"".join(path.read_bytes() for path in sorted(folder.glob(PARTS.format("*"))))
    found = json.loads((folder / NAMES).read_text())
    if len(contents) != sum(length for _, length in found):
        raise ValueError(f"A part is missing in {folder}, or cut: copy all of what was handed over again.")
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
                put(path, contents[start : start + length])
                taken.append(place)
            start += length
    return taken


def put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; of a state with its moments."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
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


def append(folder: Path, place: str, content: bytes) -> None:
    """Write on where the last part ends, in parts that are not too large."""
    names = folder / NAMES
    found = json.loads(names.read_text()) if names.is_file() else []
    start = sum(length for _, length in found)
    names.write_text(json.dumps([*found, (place, len(content))]))
    while content:
        room = PART - start % PART
        with (folder / PARTS.format(f"{start // PART:03}")).open("ab") as file:
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
