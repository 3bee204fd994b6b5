"""Always-valid judges of error counts: may be asked after every request and stopped at any time.

`rollout_judge` and the shadow call them. Each takes what happened, a row a request in order, and says `failed` when a claim is surely
wrong at any prefix of the rows, so that the answer is a function of the data and not of when somebody looked; `passed` when a departure by
the margin is surely excluded by all of them; `inconclusive` in between, with what is missing. Pure; numpy and the standard library.

Failures come in bursts. For `failed`, only requests whose predecessor did not fail are counted, so a burst counts once: for failures that
are a Markov chain of any non-negative correlation such a request fails with chance (1 - r) p <= p, so what holds for independent requests
holds for these (a bet may leave out rounds by what is known before them). A burst itself is evidence when it is longer than `CORRELATION`
explains: else a server that dies after good service would be one event for ever. For `passed`, evidence is divided by the length of the
bursts that were seen. That part is a correction and not a proof.

The evidence is a likelihood ratio, averaged over alternatives (Robbins 1970, "Statistical methods related to the law of the iterated
logarithm"; Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting"): under the claim a non-negative
supermartingale that starts at 1, so it reaches 1 / chance with that chance at most (Ville 1939).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from validation.contract import Finding, Outcome
from validation.findings import inconclusive
from validation.served import Served

ABOVE = ((1.4, 0.03), (2.0, 0.06), (4.0, 0.13), (8.0, 0.13), (40.0, 0.14), (250.0, 0.51))
"""Alternatives above a limit, as multiples of it, with their weights. The heavy one is for versions that fail outright, where each request
counts; the others cost what their weight says, once (found by search: bench.error_rates has what it reaches)."""

BELOW = ((0.02, 0.55), (0.1, 0.22), (0.3, 0.1), (0.6, 0.07), (0.85, 0.04), (0.95, 0.02))
"""Alternatives below a rate that is to be excluded, as parts of it. Most versions fail far more rarely."""

HIGHEST = 0.9
"""Greatest alternative; those beyond are left out and their weight is shared."""

OVERSHOOT, SMALL_LIMIT = 0.5, 0.002
"""Failures are whole, so evidence jumps past its threshold, and Ville's inequality pays for that: at limits up to `SMALL_LIMIT` the
threshold is multiplied by this and the exact chance to cross still is below the budget (`tests/test_error_rates.py` adds it up)."""

CORRELATION = 0.6
"""Lag-1 autocorrelation of failures up to which a burst, however long, is no evidence: one that goes on with more than this is a fault."""

LONG = 0.03
"""Part of a budget that is spent on bursts that do not end: 1 / (j (j + 1)) of it on the j-th. A server that dies after any number of good
requests is found after some 20 failures in a row; the rest of the budget costs a request or none."""

ODDS = (2.0, 5.0, 20.0, 100.0)
"""How many times as often as stable's the candidate's requests fail in the alternatives of `_apart`, equally likely."""

WINDOW_S = 10.0
"""Length of the windows within which both versions are taken to meet the same troubles."""

CANDIDATE_PART = 0.8
"""Part of `miss` that a comparison with stable spends on the candidate; the rest goes to stable, which has more requests."""

RISEN = ((1.7, 0.3), (3.5, 0.3), (8.0, 0.2), (40.0, 0.1), (250.0, 0.1))
LESS = ((0.02, 0.15), (0.1, 0.25), (0.3, 0.3), (0.6, 0.2), (0.85, 0.1))
"""The alternatives where stable's rate is not known: above what it would allow the candidate, and below it for stable. As `ABOVE`."""

STAKES = (0.95, 0.8)
"""What is bet on the candidate and on stable, of 1 each; the rest is kept. Else what one shows against a rate that stable has not would be
lost by the other, whose alternatives to it are all far from the truth."""

EDGES = np.concatenate([[1e-12], np.geomspace(1e-6, 1 - 1e-9, 76)])
"""Stable's possible rates in cells, each a fifth wide; a cell is excluded as a whole (`_evidence_of_rise`)."""

PIECE = 4096
"""Rows that are compared at once, for memory's sake."""

CURTAILED = 0.5
"""A bet in `score_shift_within` risks at most this part of what it has (the paper's c)."""

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
Counts = NDArray[np.signedinteger]
_WAIT = "wait for more requests"


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Failures and requests, and bursts of failures in the requests that no failure preceded."""

    failures: int
    n: int
    bursts: int
    counted: int

    @classmethod
    def of(cls, failed: Flags) -> Tally:
        counted = _unpreceded(failed)
        return cls(failures=int(failed.sum()), n=len(failed), bursts=int((failed & counted).sum()), counted=int(counted.sum()))

    @property
    def burst_length(self) -> float:
        return max(1.0, self.failures / max(self.bursts, 1))


def error_rate_below(*, name: str, failed: Flags, limit: float, exclude: float, false_alarm: float, miss: float) -> Finding:
    """Is the error rate at most `limit`? `failed`: bool, a row a request in order.

    Failed: surely above `limit`, with chance `false_alarm` at most when it is not. Passed: `exclude` or more is surely excluded, with
    chance `miss` at most when it is not. The interval holds the rates that neither excludes.
    """
    return _below(name, failed, (limit, exclude), (false_alarm, miss), "requests failed")


def disagreement_below(*, name: str, disagreed: Flags, limit: float, exclude: float, false_alarm: float, miss: float) -> Finding:
    """Do the versions answer the same request differently in at most `limit` of all pairs? As `error_rate_below`; a row a pair."""
    return _below(name, disagreed, (limit, exclude), (false_alarm, miss), "pairs of answers differ")


def error_rate_not_above(
    *, name: str, candidate: Served, stable: Served, rise: float, exclude: float, false_alarm: float, miss: float
) -> Finding:
    """Is the candidate's error rate at most stable's plus `rise`?

    Failed: wherever a burst of the candidate's begins, there is evidence against each rate that stable may have: what the candidate shows
    against that rate plus `rise`, times what stable shows against so high a rate. Products of likelihood ratios of different requests are
    likelihood ratios, and at stable's true rate this one reaches 1 / `false_alarm` with that chance at most; failed when the least over all
    rates did (Wasserman, Ramdas and Balakrishnan 2020, "Universal inference"), and when by the end of some `WINDOW_S` the candidate surely
    had more than its share of the failures. The first is right while each version fails at one rate: alone it takes a bad minute that
    comes when the candidate's share has just grown for the candidate's fault. In the windows what both suffer cancels, whatever their
    shares; that is right while chance decides who gets a request. `false_alarm` holds while one of the two does.

    Passed: the candidate's upper bound lies less than `exclude` above stable's lower bound; both hold at all times together (union bound).
    """
    _checked(rise, exclude, false_alarm, miss)
    if not len(candidate) or not len(stable) or not (candidate.readable and stable.readable):
        seen = f"{len(candidate)} requests of the candidate and {len(stable)} of stable"
        return inconclusive(name, f"{seen}, or times that cannot be read: nothing to compare", _WAIT, limit=rise, n=len(candidate))
    here, there = Tally.of(~candidate.ok), Tally.of(~stable.ok)
    part = (CANDIDATE_PART * miss, (1 - CANDIDATE_PART) * miss)
    lowest, highest = _lowest_rise(candidate, stable, rise, false_alarm), upper_rate(here, part[0]) - lower_rate(there, part[1])
    words = f"{here.failures} of {here.n} requests failed, {there.failures} of {there.n} on stable"
    return _rate_finding(
        name,
        here.failures / here.n - there.failures / there.n,
        (lowest, highest),
        rise,
        exclude,
        n=here.n,
        words=words,
        than="stable plus ",
    )


def score_shift_within(*, name: str, differences: Floats, margin: float, exclude: float, false_alarm: float, miss: float) -> Finding:
    """Do paired scores differ by at most `margin` on average, in either direction? `differences`: float64 in [-1, 1], a row a pair.

    A confidence sequence for the mean of bounded values, the predictable plug-in empirical Bernstein one (Waudby-Smith and Ramdas 2024,
    theorem 2). Failed: at some pair it lay outside of the margin. Passed: it lies within `exclude` now.
    """
    _checked(margin, exclude, false_alarm, miss)
    if not len(differences) or not np.isfinite(differences).all() or (np.abs(differences) > 1).any():
        why = f"{len(differences)} pairs, or a difference that is not within -1 and 1: nothing to compare"
        return inconclusive(name, why, "wait for pairs of answers, or look for scores that are not finite", limit=margin, n=0)
    lower, upper = _mean_sequence(differences, false_alarm)
    shifted = bool((lower > margin).any() or (upper < -margin).any())
    low, high = (float(each[-1]) for each in _mean_sequence(differences, miss))
    mean, within = float(differences.mean()), max(-low, high) < exclude
    outcome = Outcome.FAILED if shifted else Outcome.PASSED if within else Outcome.INCONCLUSIVE
    claim = (
        f"a shift of {exclude:g} is excluded",
        f"neither {margin:g} is surely kept nor broken",
        f"surely shifted by more than {margin:g}",
    )
    advice = (
        f"wait for about {_more_pairs(low, high, mean, exclude, len(differences))} more pairs" if outcome is Outcome.INCONCLUSIVE else None
    )
    why = f"scores of {len(differences)} pairs differ by {mean:.4g} on average; {claim[outcome]}"
    return Finding(
        name=name, outcome=outcome, why=why, observed=mean, limit=margin, interval=(low, high), n=len(differences), advice=advice
    )


def surely_above_at(failed: Flags, limit: float, chance: float) -> int | None:
    """After how many rows the rate is surely above `limit`; None when it is not yet.

    Evidence against a low rate grows at failures only, so only prefixes that end with one are looked at.
    """
    counted = _unpreceded(failed)
    n, bursts = np.cumsum(counted, dtype=np.int64), np.cumsum(failed & counted, dtype=np.int64)
    begins, ends = np.flatnonzero(failed & counted), np.flatnonzero(failed)
    over = _evidence(bursts[begins], n[begins], limit, ABOVE) >= _threshold(limit, (1 - LONG) * chance)
    sure = np.concatenate([begins[over], ends[_too_long(ends - begins[bursts[ends] - 1] + 1, bursts[ends], limit, LONG * chance)]])
    return int(sure.min()) + 1 if len(sure) else None


def lower_rate(tally: Tally, chance: float) -> float:
    """Least rate that the counts do not exclude; always valid, wrong with `chance` at most."""
    return float(_lower_rates(np.array([tally.bursts]), np.array([tally.counted]), chance)[0])


def upper_rate(tally: Tally, chance: float) -> float:
    """Greatest rate that the counts do not exclude; always valid for independent requests, widened by the bursts that were seen."""
    return float(_upper_rates(np.array([tally.failures]), np.array([tally.n]), np.array([tally.burst_length]), chance)[0])


def clean_requests_to_exclude(rate: float, miss: float) -> int:
    """How many requests without a failure exclude this rate."""
    return _first_clean(Tally(failures=0, n=0, bursts=0, counted=0), rate, miss)


def _below(name: str, failed: Flags, rates: tuple[float, float], chances: tuple[float, float], words: str) -> Finding:
    limit, exclude = rates[0], min(rates[1], 1 - 1e-9)  # a rate of 1 is excluded by the first answer
    _checked(limit, exclude, *chances)
    if failed.ndim != 1 or failed.dtype != np.bool_:
        why = f"the rows are {failed.ndim}-dimensional {failed.dtype} and must be a list of true and false"
        return inconclusive(name, why, "look for what wrote them", limit=limit)
    tally = Tally.of(failed)
    if not tally.n:
        return inconclusive(name, f"0 of 0 {words}: nothing was shown", _clean_advice(tally, exclude, chances[1]), limit=limit, n=0)
    surely = surely_above_at(failed, limit, chances[0]) is not None
    interval = (lower_rate(tally, chances[0]), upper_rate(tally, chances[1]))
    outcome = Outcome.FAILED if surely else Outcome.PASSED if interval[1] < exclude else Outcome.INCONCLUSIVE
    claim = (
        f"{exclude:.3%} or more is excluded",
        f"that neither shows more than {limit:.4%} nor excludes {exclude:.3%}",
        f"surely more than {limit:.4%}",
    )
    advice = _clean_advice(tally, exclude, chances[1]) if outcome is Outcome.INCONCLUSIVE else None
    return Finding(
        name=name,
        outcome=outcome,
        why=f"{tally.failures} of {tally.n} {words}, {claim[outcome]}",
        observed=tally.failures / tally.n,
        limit=limit,
        interval=interval,
        n=tally.n,
        advice=advice,
    )


def _rate_finding(
    name: str, observed: float, bounds: tuple[float, float], rise: float, exclude: float, *, n: int, words: str, than: str
) -> Finding:
    outcome = Outcome.FAILED if bounds[0] > rise else Outcome.PASSED if bounds[1] < exclude else Outcome.INCONCLUSIVE
    claim = (
        f"{than}{exclude:.3%} is excluded",
        f"that neither shows more than {than}{rise:.4%} nor excludes {than}{exclude:.3%}",
        f"surely more than {than}{rise:.4%}",
    )
    advice = _WAIT if outcome is Outcome.INCONCLUSIVE else None
    return Finding(
        name=name, outcome=outcome, why=f"{words}: {claim[outcome]}", observed=observed, limit=rise, interval=bounds, n=n, advice=advice
    )


def _unpreceded(failed: Flags) -> Flags:
    """Requests whose predecessor did not fail."""
    return np.concatenate([[True], ~failed[:-1]])[: len(failed)]


def _too_long(length: Counts, burst: Counts, limit: float, chance: float) -> Flags:
    """Whether bursts are so long, given which ones they are from 1: after a failure another has at most `limit` + r (1 - `limit`)."""
    goes_on = math.log(limit + CORRELATION * (1 - limit))
    return np.asarray((length - 1) * goes_on <= np.log(chance / (burst * (burst + 1.0))))


def _threshold(limit: float, chance: float) -> float:
    return math.log((OVERSHOOT if limit <= SMALL_LIMIT else 1.0) / chance)


def _evidence(failures: Counts, n: Counts, rate: Floats | float, multiples: tuple[tuple[float, float], ...]) -> Floats:
    """Log of the averaged likelihood ratio against `rate`; shapes [points], or [points, 1] and [rates]."""
    rate = np.array(rate, float, ndmin=failures.ndim)
    terms, weights = [], []
    for multiple, weight in multiples:
        other = rate * multiple
        possible = other <= HIGHEST
        safe = np.where(possible, other, HIGHEST)
        weights.append(np.where(possible, weight, 0.0))
        terms.append(failures * np.log(safe / rate) + (n - failures) * np.log((1 - safe) / (1 - rate)))
    weight = np.array(weights) / np.maximum(np.sum(weights, axis=0), 1e-300)
    with np.errstate(divide="ignore"):
        averaged: Floats = np.logaddexp.reduce(np.array(terms) + np.log(weight), axis=0)
    return np.where(np.sum(weights, axis=0) > 0, averaged, 0.0)  # no alternative is left: nothing is bet


def _lower_rates(bursts: Counts, counted: Counts, chance: float) -> Floats:
    """By bisection of the log of the rate: below the rate that was seen the evidence falls as the rate rises."""
    seen = np.maximum(bursts, 1) / np.maximum(counted, 1)
    low, high = seen * 1e-9, np.minimum(seen, 1 - 1e-9)
    for _ in range(45):
        middle = np.sqrt(low * high)
        thresholds = np.log(np.where(middle <= SMALL_LIMIT, OVERSHOOT, 1.0) / chance)
        excluded = _evidence(bursts, counted, middle, ABOVE) >= thresholds
        low, high = np.where(excluded, middle, low), np.where(excluded, high, middle)
    return np.where(bursts > 0, low, 0.0)


def _upper_rates(failures: Counts, n: Counts, burst_length: Floats, chance: float) -> Floats:
    low, high = np.maximum(failures, 1e-9) / np.maximum(n, 1), np.ones(len(n)) * (1 - 1e-9)
    for _ in range(50):
        middle = (low + high) / 2
        excluded = _evidence(failures, n, middle, BELOW) / burst_length >= math.log(1 / chance)
        low, high = np.where(excluded, low, middle), np.where(excluded, middle, high)
    return np.where(n > 0, high, 1.0)


@dataclass(frozen=True, kw_only=True)
class _Beside:
    """What both versions had shown wherever a burst of the candidate's began, and at its last request: a row each."""

    bursts: Counts
    counted: Counts
    stable_failures: Counts
    stable_n: Counts
    stable_bursts: Counts

    @classmethod
    def of(cls, candidate: Served, stable: Served) -> _Beside:
        """Requests of the same instant: stable's count as earlier."""
        failed, counted = ~candidate.ok, _unpreceded(~candidate.ok)
        rows = np.append(np.flatnonzero(failed & counted), len(failed) - 1)
        before = np.searchsorted(stable.unix_s, candidate.unix_s[rows], side="right")
        return cls(
            bursts=np.cumsum(failed & counted, dtype=np.int64)[rows],
            counted=np.cumsum(counted, dtype=np.int64)[rows],
            stable_failures=_upto(~stable.ok, before),
            stable_n=before,
            stable_bursts=_upto(~stable.ok & _unpreceded(~stable.ok), before),
        )

    def __getitem__(self, rows: slice) -> _Beside:
        return _Beside(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})


def _lowest_rise(candidate: Served, stable: Served, rise: float, chance: float) -> float:
    """Every smaller rise is excluded, at the row that showed more than `rise` or else at the last; with averages alone `rise` at most."""
    beside, needed = _Beside.of(candidate, stable), math.log(1 / chance)
    over = _evidence_of_rise(beside, rise) >= needed
    row = int(over.argmax()) if over.any() else len(over) - 1
    low, high = (rise, 1.0) if over.any() else (-1.0, rise)
    for _ in range(45):
        middle = (low + high) / 2
        excluded = _evidence_of_rise(beside[row : row + 1], middle)[0] >= needed
        low, high = (middle, high) if excluded else (low, middle)
    return low if low <= rise or _surely_apart(candidate, stable, chance) else rise


def _evidence_of_rise(beside: _Beside, rise: float) -> Floats:
    """Log of the least evidence, in each row, against any rate of stable's with the candidate's at most `rise` above it.

    In a cell the candidate is held against its upper edge and stable against its lower one: that is evidence against every rate between.
    Stable's counts as much less as its bursts were long. A fall that would leave the candidate a rate below zero is excluded by itself.
    """
    pieces = [beside[start : start + PIECE] for start in range(0, len(beside.bursts), PIECE)]
    return np.concatenate([_evidence_in_cells(piece, rise).min(axis=1, initial=np.inf) for piece in pieces])


def _evidence_in_cells(beside: _Beside, rise: float) -> Floats:
    highest, lowest = np.minimum(EDGES[1:] + rise, EDGES[-1]), EDGES[:-1]
    possible = highest > 0
    lengths = np.maximum(1.0, beside.stable_failures / np.maximum(beside.stable_bursts, 1))[:, None]
    above = _evidence(beside.bursts[:, None], beside.counted[:, None], highest[possible], RISEN)
    below = _evidence(beside.stable_failures[:, None], beside.stable_n[:, None], lowest[possible], LESS) / lengths
    return _staked(above, STAKES[0]) + _staked(below, STAKES[1])


def _staked(evidence: Floats, stake: float) -> Floats:
    return np.asarray(np.logaddexp(math.log(1 - stake), math.log(stake) + evidence))


def _surely_apart(candidate: Served, stable: Served, chance: float) -> bool:
    """Whether by the end of some window the candidate surely had more of the failures than its share of the requests explains.

    One failure after the other is drawn from the window's requests that are left: from either version as often as it has requests left
    (the hypergeometric distribution; Fisher 1935, "The logic of inductive inference"), or in the alternatives, `ODDS` times as often from
    the candidate's. The averaged likelihood ratio is a supermartingale whatever the rate of each window. The last one may still go on.
    """
    window, mine, failed = _merged(candidate, stable)
    left_mine, left_stable = (_left(window, whose, whose & failed)[failed] for whose in (mine, ~mine))
    odds = np.array(ODDS)
    gain = np.log(np.where(mine[failed][:, None], odds, 1.0)) + np.log(left_mine + left_stable)[:, None]
    ratios = np.cumsum(gain - np.log(left_mine[:, None] * odds + left_stable[:, None]), axis=0)
    ended = np.diff(np.append(window[failed], window[-1])) > 0
    evidence = np.logaddexp.reduce(ratios[ended], axis=1) - math.log(len(ODDS))
    return bool((evidence >= math.log(1 / chance)).any())


def _merged(candidate: Served, stable: Served) -> tuple[Counts, Flags, Flags]:
    """All requests in order of time: the window of each, whether it is the candidate's, whether it failed."""
    times = np.concatenate([stable.unix_s, candidate.unix_s])
    order = np.argsort(times, kind="stable")
    mine = np.arange(len(times)) >= len(stable)
    return np.floor(times[order] / WINDOW_S).astype(np.int64), mine[order], ~np.concatenate([stable.ok, candidate.ok])[order]


def _left(window: Counts, theirs: Flags, drawn: Flags) -> Floats:
    """For each row: how many of these are in its window, less those drawn before it."""
    first, end = np.searchsorted(window, window, side="left"), np.searchsorted(window, window, side="right")
    everyone, taken = (_upto(flags, np.arange(len(flags) + 1)) for flags in (theirs, drawn))
    return np.asarray(everyone[end] - everyone[first] - taken[:-1] + taken[first], float)


def _upto(flags: Flags, rows: Counts) -> Counts:
    return np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])[rows]


def _mean_sequence(differences: Floats, chance: float) -> tuple[Floats, Floats]:
    """Lower and upper bounds of the mean after each pair, both together wrong with `chance` at most."""
    values, count = (differences + 1) / 2, np.arange(1, len(differences) + 1)
    means = (0.5 + np.cumsum(values)) / (count + 1)
    spreads = (0.25 + np.cumsum((values - means) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], spreads[:-1]])
    bets = np.minimum(np.sqrt(2 * math.log(2 / chance) / (before * count * np.log1p(count))), CURTAILED)
    paid = (values - np.concatenate([[0.5], means[:-1]])) ** 2 * (-np.log1p(-bets) - bets)
    staked = np.cumsum(bets)
    centre, width = np.cumsum(bets * values) / staked, (math.log(2 / chance) + np.cumsum(paid)) / staked
    return 2 * (centre - width) - 1, 2 * (centre + width) - 1


def _more_pairs(low: float, high: float, mean: float, exclude: float, n: int) -> int:
    """Widths shrink about with the root of the number."""
    room = exclude - abs(mean)
    return max(1, math.ceil(n * ((high - low) / 2 / room) ** 2) - n) if room > 0 else 10 * n


def _clean_advice(tally: Tally, exclude: float, miss: float) -> str:
    needed = _first_clean(tally, exclude, miss)
    return f"about {needed} more requests without a failure would exclude {exclude:.3%}" if needed < 10**9 else _WAIT


def _first_clean(tally: Tally, exclude: float, miss: float) -> int:
    def enough(more: int) -> bool:
        n = np.array([tally.n + more])
        return bool(_upper_rates(np.array([tally.failures]), n, np.array([tally.burst_length]), miss)[0] < exclude)

    high = 1
    while not enough(high) and high < 10**9:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _checked(limit: float, exclude: float, *chances: float) -> None:
    if not 0 < limit < exclude < 1:
        raise ValueError(f"{limit} and {exclude} must lie between 0 and 1, the margin above the limit")
    if not all(0 < each < 1 for each in chances):
        raise ValueError(f"chances {chances} must lie between 0 and 1")
