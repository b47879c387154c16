"""The papers' tables by this library, piece by piece: on whatever machine there is, for as long as there is time.

    python scripts/reproduce.py --list                 # what there is to do, and what is done
    python scripts/reproduce.py --next --budget 540    # do pieces for nine minutes; again, and it goes on from there
    python scripts/reproduce.py --table                # tables and figures of what is done

`--size paper` is the published training, for a GPU; `--size lite` what two CPU cores can do, and every table says so.
Several programs may work on one queue at once: each piece is done by one of them. A piece that was stopped, or killed,
goes on from its last checkpoint or row. To go on elsewhere, let `--hand-over-to FOLDER` write what the next piece
needs, in files of at most 15 MiB, and give `--take-over-from FOLDER` there; results are small JSON files.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tables
import tyro
from evidence import DATA, REAL, Piece, kept, queue
from hand_over import hand_over, newest, take_over
from pieces import Bench, OutOfTimeError
from results import load

ROOT = Path(__file__).parent.parent
CARDS = ROOT / "model_cards"
AWAY = "away"  # what it needs is on another machine


def main(
    size: Literal["paper", "lite"] = "paper",
    list: bool = False,
    next: bool = False,
    table: bool = False,
    keep: bool = False,
    budget: float = float("inf"),
    only: str = "",
    data: tyro.conf.UseAppendAction[tuple[tuple[str, str], ...]] = (),
    runs: Path = Path("runs/reproduce"),
    results: Path = CARDS / "evidence",
    take_over_from: Path | None = None,
    hand_over_to: Path | None = None,
) -> None:
    """Do what is asked for, in this order: take over, work, hand over, keep, list, draw.

    Args:
        size: of everything.
        list: say what is done, begun and still to do.
        next: do one piece after the other.
        table: write tables and figures of all sizes.
        keep: leave the global-local generator of seed 0 of every data set in `model_cards`, with its card.
        budget: seconds after which no piece is begun and a training is stopped; a row of a judgement is finished.
        only: pieces whose names contain this.
        data: a local folder instead of a Hub id, as `--data fashion_mnist FOLDER --data mnist FOLDER`.
        runs: where runs and unfinished rows are kept.
        results: where the JSON of finished pieces is kept.
        take_over_from: a folder that `--hand-over-to` wrote on another machine.
        hand_over_to: a folder for what the next piece needs on another machine.

    """
    if not (next or list or table or keep or hand_over_to or take_over_from):
        raise SystemExit("Nothing to do: say --list, --next, --table, --keep, --hand-over-to or --take-over-from.")
    check(data)
    load(results, size)  # refuses what was made of other data, or when the size was another
    bench = Bench(runs, results, dict(data), time.monotonic() + budget)
    pieces = [piece for piece in queue(size) if only in piece.name]
    if not pieces:
        raise SystemExit(f"--only {only}: no piece of size {size} has this in its name; --list names them.")
    if take_over_from:
        print("\n".join(take_over(bench, take_over_from)) or "All of it is here, or went further here.")
    if next:
        work(bench, pieces)
    if hand_over_to:
        print(pack(bench, pieces, hand_over_to))
    if keep:
        for piece in kept(size):
            if piece in pieces:
                judged = all(bench.result(each).is_file() for each in (piece, Piece(size, piece.data, REAL)))
                here = judged and bench.at_hand(piece)
                print(bench.keep(piece, CARDS) if here else f"{piece.card}: not judged yet, or not on this machine")
    if list:
        for piece in pieces:
            print(f"{state(bench, piece):<6} {piece.name}")
    if table:
        for path in tables.write_all(results, ROOT):
            print(path)


def check(data: Sequence[tuple[str, str]]) -> None:
    """Refuse data sets that are not in the queue, and folders that are not there."""
    names = {name.split("/")[-1] for name, _ in DATA.values()}
    for number, (name, folder) in enumerate(data):
        if name not in names:
            raise SystemExit(f"--data {name}: there is no such data set here, only {', '.join(sorted(names))}.")
        if name in dict(data[:number]):
            raise SystemExit(f"--data {name} is given twice: name one folder for it.")
        if not Path(folder).is_dir():
            raise SystemExit(f"--data {name} {folder}: there is no such folder.")


def work(bench: Bench, pieces: list[Piece]) -> None:
    """Do what can be done until time or work is up; say what cannot be done here, or not yet."""
    while time.monotonic() < bench.deadline:
        for piece in pieces:
            if not ready(bench, piece):
                continue
            with bench.claimed(piece.name) as mine:
                if not mine or bench.result(piece).is_file():
                    continue
                print(piece.name, flush=True)
                try:
                    bench.run(piece)
                except OutOfTimeError:
                    print(f"{piece.name}: to be continued")
                    return
            break
        else:
            left = [piece for piece in pieces if not bench.result(piece).is_file()]
            if away := [piece.name for piece in left if state(bench, piece) == AWAY]:
                print(
                    f"Not done, since the generators they need are on another machine: {', '.join(away)}. Run them "
                    "there, take over from there, or delete the JSON of those trainings to train here again."
                )
            if early := [piece.name for piece in left if not due(bench, piece)]:
                print(f"Not done, since the trainings they need are not: {', '.join(early)}.")
            return


def pack(bench: Bench, pieces: list[Piece], folder: Path) -> str:
    """Hand over the first piece that can be done now and that no other program is at; says what that is."""
    for piece in pieces:
        if ready(bench, piece):
            with bench.claimed(piece.name) as mine:
                if mine:
                    step, size = hand_over(bench, piece, folder)
                    last = newest(bench.folder(piece))
                    lost = f"; its state after step {last} is too large" if last > step else ""
                    return f"{piece.name}: {size:,} bytes, goes on after step {step}{lost}"
    return "Nothing is to be handed over: all is done, waits for other pieces, or is under way or away."


def ready(bench: Bench, piece: Piece) -> bool:
    """Whether a piece is to be done and all that it needs is here."""
    return due(bench, piece) and bench.at_hand(piece)


def due(bench: Bench, piece: Piece) -> bool:
    """Whether a piece is to be done next, here or elsewhere."""
    return not bench.result(piece).is_file() and all(bench.result(need).is_file() for need in piece.needs)


def state(bench: Bench, piece: Piece) -> str:
    """In a word."""
    if due(bench, piece) and not bench.at_hand(piece):
        return AWAY
    return "done" if bench.result(piece).is_file() else "begun" if bench.folder(piece).is_dir() else "open"


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except KeyboardInterrupt as stop:
        sys.exit(str(stop) or "Stopped: finished rows are kept, and the same command goes on from them.")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
