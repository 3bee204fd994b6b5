"""Two versions' answers to the same request, held against each other; and the ring in which the comparisons wait for the task `shadow`.

`delivery.recorder` asks both servers and adds what came of it. Inputs and answers themselves are not kept here. No version is judged.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from validation.paired import COMPARED, NEITHER, NO_CANDIDATE, NO_STABLE, OTHER_FORM, UNFINITE
from validation.parity import is_float, is_text, is_vector, rows_flipped, unfinite

ROWS_KEPT = 50_000
ROWS_PER_ANSWER = 5_000

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One request, answered by `stable` and `candidate` (versions), as `state` says.

    Of several rows in a request one is looked at, for they are no independent evidence: `flipped`, whether its label, or the place of its
    greatest score, is another (None where no output could tell); `difference`, candidate's number less stable's where a row has one, else
    the largest distance of all of its numbers; `furthest` and `mean`, largest distance and mean difference over all rows. The last three
    are None without float outputs.
    """

    unix_s: float
    stable: int
    candidate: int
    state: str
    why: str = ""
    rows: int = 1
    flipped: bool | None = None
    difference: float | None = None
    furthest: float | None = None
    mean: float | None = None


@dataclass(frozen=True, kw_only=True)
class Silence:
    """No answer, and why: a status, a time-out, bytes that cannot be read."""

    why: str


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What both were asked: a request of `rows` rows, of which number `row` is looked at; and the versions that were."""

    unix_s: float
    stable: int
    candidate: int
    rows: int = 1
    row: int = 0


def compare(asked: Asked, stable: Arrays | Silence, candidate: Arrays | Silence) -> Pair:
    known: dict[str, Any] = {"unix_s": asked.unix_s, "stable": asked.stable, "candidate": asked.candidate, "rows": asked.rows}
    if isinstance(stable, Silence) or isinstance(candidate, Silence):
        return Pair(**known, **_silent(stable, candidate))
    if problem := _other_form(stable, candidate):
        return Pair(**known, state=OTHER_FORM, why=problem)
    if problem := _unfinite(stable, candidate):
        return Pair(**known, state=UNFINITE, why=problem)
    by_row = {name for name, values in stable.items() if len(values) == asked.rows}
    stable, candidate = ({name: each[name] for name in sorted(by_row)} for each in (stable, candidate))
    distances: dict[str, Any] = _distances(stable, candidate, asked.row)
    return Pair(**known, state=COMPARED, flipped=_flipped(stable, candidate, asked.row), **distances)


def _flipped(stable: Arrays, candidate: Arrays, row: int) -> bool | None:
    telling = [name for name, values in stable.items() if not is_float(values) or is_vector(values)]
    return bool(rows_flipped(candidate, stable)[row]) if telling else None


def _silent(stable: Arrays | Silence, candidate: Arrays | Silence) -> dict[str, Any]:
    silent = {"stable": stable, "candidate": candidate}
    words = {who: each.why for who, each in silent.items() if isinstance(each, Silence)}
    state = NEITHER if len(words) == 2 else NO_STABLE if "stable" in words else NO_CANDIDATE
    return {"state": state, "why": "; ".join(f"{who}: {why}" for who, why in words.items())}


def _other_form(stable: Arrays, candidate: Arrays) -> str:
    """Which outputs are missing, extra, or of another type or shape; empty when none is."""
    words = [f"output {name!r} is missing" for name in sorted(set(stable) - set(candidate))]
    words += [f"output {name!r} is extra" for name in sorted(set(candidate) - set(stable))]
    for name in sorted(set(stable) & set(candidate)):
        found, wanted = (_form(each[name]) for each in (candidate, stable))
        if found != wanted:
            words.append(f"output {name!r} is {found}, stable's is {wanted}")
    return "; ".join(words)


def _form(values: np.ndarray) -> str:
    return f"{'text' if is_text(values) else values.dtype.name} {list(values.shape)}"


def _unfinite(stable: Arrays, candidate: Arrays) -> str:
    """Where the candidate has NaN or infinity and stable a number."""
    names = [name for name, values in candidate.items() if is_float(values) and (unfinite(values) & ~unfinite(stable[name])).any()]
    return f"NaN or infinity in {', '.join(map(repr, names))}, where stable has a number" if names else ""


def _distances(stable: Arrays, candidate: Arrays, row: int) -> dict[str, float | None]:
    gaps = [_gaps(stable[name], values) for name, values in candidate.items() if is_float(values)]
    together = np.concatenate(gaps, axis=1) if gaps else np.empty((0, 0))
    finite = together[np.isfinite(together)]
    if not finite.size:
        return {"difference": None, "furthest": None, "mean": None}
    looked = together[row][np.isfinite(together[row])]
    difference = None if not looked.size else float(looked[0]) if together.shape[1] == 1 else float(np.abs(looked).max())
    return {"difference": difference, "furthest": float(np.abs(finite).max()), "mean": float(finite.mean())}


def _gaps(stable: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Candidate less stable [rows, numbers]."""
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = candidate.astype(np.float64) - stable.astype(np.float64)
    return np.asarray(gaps.reshape(len(gaps), -1))


class Pairs:
    """A ring per model. `epoch` changes with every start of the recorder: sequence numbers begin anew then."""

    def __init__(self, *, kept: int = ROWS_KEPT, per_answer: int = ROWS_PER_ANSWER) -> None:
        self.epoch = secrets.token_hex(8)
        self._kept = kept
        self._per_answer = per_answer
        self._rings: dict[str, deque[dict[str, Any]]] = {}
        self._last: dict[str, int] = {}

    def add(self, model: str, pair: Pair) -> None:
        number = self._last[model] = self._last.get(model, 0) + 1
        self._rings.setdefault(model, deque(maxlen=self._kept)).append({"number": number, **asdict(pair)})

    def last(self, model: str) -> int:
        return self._last.get(model, 0)

    def after(self, model: str, number: int) -> dict[str, Any]:
        """Rows after `number`, oldest first; `last` is where to go on. A gap before the first row tells that older ones left the ring."""
        ring, newest = self._rings.get(model, deque()), self.last(model)
        skipped = max(0, number - (newest - len(ring)))
        rows = list(islice(ring, skipped, skipped + self._per_answer))
        return {"epoch": self.epoch, "last": rows[-1]["number"] if rows else newest, "rows": rows}
