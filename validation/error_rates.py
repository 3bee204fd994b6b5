"""The judges of counts: failed requests against a limit and against stable, answers that disagree, scores that shift.

The rollout's and the shadow's watch call them after every second, over all rows so far. All are always valid: the chance of *ever* saying
`failed` of a version within its limit stays below `false_alarm`, of saying `passed` of one at `exclude` below `miss`, however often
one looks (Ville 1939; Ramdas, Gruenwald, Vovk and Shafer 2023, "Game-theoretic statistics and safe anytime-valid inference"). `failed` is
a function of the rows alone: every beginning of them is judged in one pass, the finding is that of the first one that is sure, and rows
that come later no longer change it. So it does not matter when one looked, and a replay decides again bit for bit.

Failures come in bursts. What one failure says about the next request is nobody's evidence, so only a request whose predecessor did not
fail is bet on: what is counted is bursts that begin. In a Markov chain of failures with rate p and lag-1 autocorrelation r >= 0 the
chance of that is (1 - r) p, so whatever holds for independent requests at the limit holds for every such chain. A burst itself is
evidence only when it is longer than `CORRELATION` explains: a server that dies after long good service fails some 18 requests first.

What it will not do: read files, smooth, average points, or pass what is empty or cannot be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from validation.contract import Finding, Outcome
from validation.findings import inconclusive
from validation.served import Served

CORRELATION = 0.6
"""Lag-1 autocorrelation of failures that does not break `false_alarm`. With more, long bursts do: then a server is ill for a while."""

FIRST = (0.40, 0.13, 0.04)
"""Shares of `false_alarm` for a first, second and third burst that begin sooner than chance: at a limit of 0.1 % and a budget of 1 % the
first within 4 requests, the second within 52. They spend what a likelihood ratio wastes by stepping over its bound; no mixture of such
ratios alone found 5 % within 32 requests, because the request after a failure is not bet on."""

LONG = 0.03
"""Share of `false_alarm` for a burst that does not end: 1 / (j (j + 1)) of it for the j-th burst."""

ABOVE = ((0.65, 0.02), (0.32, 0.18), (0.22, 0.17), (0.085, 0.03))
"""The mixture: for each alternative its place between the limit (0) and 1 (1) on a logarithmic scale, and its share of `false_alarm`.
At a limit of 0.1 % they lie at 9 %, 0.9 %, 0.46 % and 0.18 %. With `FIRST` and `LONG` the shares add up to 1."""

ABOVE_STABLE = ((0.85, 0.30), (0.60, 0.20), (0.32, 0.23), (0.22, 0.22), (0.085, 0.05))
"""The same where the limit is not known, and so nothing can be spent on `FIRST` and `LONG`."""

BELOW = ((0.001, 0.45), (0.03, 0.15), (0.1, 0.15), (0.25, 0.15), (0.5, 0.10))
"""Alternatives below a rate, as shares of it, and their weights: most for those that hardly ever fail."""

STAKE = 0.5
"""What is bet on stable's own rate, of 1: the rest is kept, so that stable's rows can cost no more than a factor of 2."""

CELLS = 76
"""Pieces of stable's possible rates, one millionth to 1 in steps of a fifth; each is excluded as a whole (`_Pair.evidence_above`)."""

ODDS = (2.0, 5.0, 20.0, 100.0)
"""How many times as often as stable's the candidate's requests fail in the alternatives to `_Pair.apart`, equally likely."""

WINDOW_S = 10.0
"""Length of the windows within which both versions are taken to meet the same troubles."""

TOGETHER_S = 60.0
"""A request of the candidate's is compared only when stable began one so shortly before it."""

CAUTIOUS = 0.75
"""Greatest bet of the confidence sequence for a mean; below 1, from Waudby-Smith and Ramdas (2024), who advise 1/2 or 3/4."""

PIECE = 4096
_CERTAIN = 1 - 1e-9
_LOOK = "look for the rows and for what wrote them"

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def error_rate_below(
    *, name: str, failed: Bools, limit: float, exclude: float, false_alarm: float, miss: float, correlation: float = 0.0
) -> Finding:
    """Is the error rate at most `limit`? `failed`: a row per request, in order of beginning, true where it failed.

    Failed at the first request at which one of these is sure, each with its own share of `false_alarm` (union bound): the first, second
    or third burst begins at a request by which as many begin with a chance of at most that share (exact binomial, `FIRST`); a likelihood
    ratio, averaged over alternatives, passes its bound (`ABOVE`; Robbins 1970, "Statistical methods related to the law of the iterated
    logarithm"); a burst is longer than `CORRELATION` explains (`LONG`). Assumed: a request whose predecessor did not fail fails with a
    chance of at most `limit`, and one whose predecessor did with at most `limit` + `CORRELATION` (1 - `limit`).

    Passed when now, over all rows, the likelihood ratio against every rate from `exclude` on reaches 1/`miss`, every failure counted.
    This takes failures as independent, unless `correlation` says up to which lag-1 autocorrelation `miss` must hold: that takes
    1 / (1 - `correlation`) times as many clean requests.

    All numbers of a failed finding are those of the rows up to the first sure one. The interval holds rates that neither test excludes.
    Raises `ValueError` for margins and budgets without meaning.
    """
    claim = _Claim(limit=limit, exclude=exclude, false_alarm=false_alarm, miss=miss, correlation=correlation)
    return _rate_below(name, failed, claim, _FAILURES)


def disagreement_below(
    *, name: str, disagreed: Bools, limit: float, exclude: float, false_alarm: float, miss: float, correlation: float = 0.0
) -> Finding:
    """Do the two versions disagree about at most `limit` of the requests that both answered? Like `error_rate_below`.

    `disagreed`: a row per pair of answers to the same request, in order, true where the label flipped, a score is NaN, or shape or schema
    differ.
    """
    claim = _Claim(limit=limit, exclude=exclude, false_alarm=false_alarm, miss=miss, correlation=correlation)
    return _rate_below(name, disagreed, claim, _DISAGREEMENTS)


def error_rate_not_above(
    *, name: str, candidate: Served, stable: Served, rise: float, exclude: float, false_alarm: float, miss: float
) -> Finding:
    """Is the candidate's error rate at most stable's plus `rise`? Both served at the same time; judged wherever the candidate fails.

    For each rate that stable may have there is evidence against it: what the candidate shows against that rate plus `rise`, times what
    stable shows against having so high a rate. The product of likelihood ratios on separate requests is one too; failed when the smallest
    over all rates reaches 1/`false_alarm`, which at stable's true rate happens with at most this chance (Wasserman, Ramdas and Balakrishnan
    2020, "Universal inference"; for two samples also Turner, Ly and Gruenwald 2024, "Generic E-variables for exact sequential k-sample
    tests that allow for optional stopping"). Passed: in the same way every pair of rates `exclude` or more apart is excluded now.

    For `failed` only bursts that begin count, and a second test must agree at the same budget: of the failures of each `WINDOW_S` seconds
    the candidate has more than its share (hypergeometric, so that what both suffer cancels; Fisher 1935, "The logic of inductive
    inference"). The first assumes that each version fails at one rate: it alone takes an outage that comes when the candidate's share has
    grown for the candidate's fault. The second assumes that within a window chance decides who gets a request. While one of the two holds,
    so does the budget. Stable's requests from before the candidate's first do not count.
    For `passed` every failure of the candidate's counts, and failures are taken as independent. A finding that failed has the numbers of
    the rows up to the first sure one. Raises `ValueError` for margins and budgets without meaning.
    """
    claim = _Claim(limit=rise, exclude=exclude, false_alarm=false_alarm, miss=miss)
    if not (candidate.readable and stable.readable):
        return inconclusive(name, "a time or a latency is missing, not finite or out of order", _LOOK, limit=rise, n=0)
    pair = _Pair.of(candidate, stable)
    if pair.n == 0:
        why = f"of {len(candidate)} requests none came within {TOGETHER_S:g} s after one of stable's {len(stable)}"
        return inconclusive(name, why, "let both versions serve at the same time", limit=rise, n=0)
    return _not_above(name, pair, claim)


def score_shift_within(*, name: str, differences: Floats, margin: float, exclude: float, false_alarm: float, miss: float) -> Finding:
    """Is the mean difference of paired scores within `margin` of 0, either way? `differences`: candidate minus stable, each from -1 to 1.

    Whoever calls divides by a bound that the scores keep, and says so. Failed at the first row at which the mean is surely beyond
    `margin`, passed when one of `exclude` or more is surely excluded now. Confidence sequence: empirical Bernstein with predictable bets
    (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", theorem 2). Assumed: each row's mean, given
    those before, is the same. The interval is the mean's, at `false_alarm`. Raises `ValueError` for margins without meaning.
    """
    claim = _Claim(limit=margin, exclude=exclude, false_alarm=false_alarm, miss=miss)
    if differences.ndim != 1 or differences.dtype.kind != "f" or not (np.abs(differences) <= 1).all():
        return inconclusive(name, "a difference is missing or not between -1 and 1", "scale by a bound that the scores keep", limit=margin)
    if len(differences) == 0:
        return inconclusive(name, "no pair of scores: nothing was shown", "mirror requests", limit=margin, n=0)
    return _shift_within(name, differences, claim)


# What is claimed, and the words for it


@dataclass(frozen=True, kw_only=True)
class _Claim:
    limit: float
    exclude: float
    false_alarm: float
    miss: float
    correlation: float = 0.0

    def __post_init__(self) -> None:
        least = min(self.exclude, _CERTAIN)  # a rate of 1 is excluded by the first answer
        holds = 0 < self.limit < least and math.isfinite(self.exclude) and self.exclude <= 1
        _need(holds, f"limit {self.limit} and exclude {self.exclude}: 0 < limit < exclude <= 1")
        _need(0 < self.false_alarm < 1 and 0 < self.miss < 1, f"false_alarm {self.false_alarm} and miss {self.miss}: between 0 and 1")
        _need(0 <= self.correlation < 1, f"correlation {self.correlation}: from 0 to below 1")
        object.__setattr__(self, "exclude", least)


@dataclass(frozen=True, kw_only=True)
class _Words:
    did: str
    once: str
    rows: str

    def counted(self, bursts: _Bursts) -> str:
        alone = bursts.failures == bursts.begun
        return f"{bursts.failures} of {bursts.n} {self.rows} {self.did}" + ("" if alone else f", in {bursts.begun} bursts")


_FAILURES = _Words(did="failed", once="a failure", rows="requests")
_DISAGREEMENTS = _Words(did="were answered differently", once="a disagreement", rows="mirrored requests")


# One sample against a limit


@dataclass(frozen=True, kw_only=True)
class _Bursts:
    """Rows as bursts. `tried`: rows that were bet on, their predecessor being well; `places`: which of those began a burst, from 1."""

    n: int
    failures: int
    tried: int
    places: Ints

    @property
    def begun(self) -> int:
        return len(self.places)

    @classmethod
    def of(cls, failed: Bools) -> _Bursts:
        bet_on = _after_success(failed)
        tried = np.cumsum(bet_on, dtype=np.int64)
        return cls(n=len(failed), failures=int(failed.sum()), tried=int(bet_on.sum()), places=tried[failed & bet_on])


def _rate_below(name: str, failed: Bools, claim: _Claim, words: _Words) -> Finding:
    if failed.ndim != 1 or failed.dtype != np.bool_:
        why = f"the rows are {failed.ndim}-dimensional {failed.dtype}, and must be a list of true and false"
        return inconclusive(name, why, _LOOK, limit=claim.limit)
    first = first_sure(failed, claim.limit, claim.false_alarm)
    bursts = _Bursts.of(failed if first is None else failed[: first + 1])
    excluded = first is None and bursts.n > 0 and _rate_excluded(bursts, claim.exclude, claim)
    outcome = Outcome.FAILED if first is not None else Outcome.PASSED if excluded else Outcome.INCONCLUSIVE
    return Finding(
        name=name,
        outcome=outcome,
        why=f"{words.counted(bursts)}; {_claimed(outcome, claim)}",
        observed=bursts.failures / bursts.n if bursts.n else None,
        limit=claim.limit,
        interval=(_lowest_rate(bursts, claim), _highest_rate(bursts, claim)),
        n=bursts.n,
        advice=_more_clean(bursts, claim, words) if outcome is Outcome.INCONCLUSIVE else None,
    )


def _claimed(outcome: Outcome, claim: _Claim) -> str:
    return (
        f"{claim.exclude:.3%} or more is excluded",
        f"that neither shows more than {claim.limit:.3%} nor excludes {claim.exclude:.3%}",
        f"surely more than {claim.limit:.3%}",
    )[outcome]


def first_sure(failed: Bools, limit: float, false_alarm: float) -> int | None:
    """The first row at which `error_rate_below` is sure that the rate is above `limit`, if there is one; rows from 0.

    Evidence rises at failures only, so only those are looked at.
    """
    rows = np.flatnonzero(failed)
    bet_on = _after_success(failed)
    begins, tried = bet_on[rows], np.cumsum(bet_on, dtype=np.int64)[rows]
    burst = np.cumsum(begins, dtype=np.int64)
    length = rows - rows[begins][burst - 1] + 1
    sure = length >= _longest(burst, limit, false_alarm)
    sure[begins] |= _mixture_sure(burst[begins], tried[begins], limit, false_alarm)
    sure[begins] |= _too_soon(tried[begins], limit, false_alarm)
    return int(rows[sure][0]) if sure.any() else None


def _after_success(failed: Bools) -> Bools:
    """True where the row before did not fail; the first row has none that did."""
    return np.concatenate(([True], ~failed[:-1]))[: len(failed)]


def _too_soon(places: Ints, limit: float, false_alarm: float) -> Bools:
    """Which of the bursts that begin at these requests do so sooner than their share of the budget explains."""
    sure = np.zeros(len(places), bool)
    for k, (place, share) in enumerate(zip(places, FIRST, strict=False)):
        sure[k] = _chance_of_more(k, int(place), limit) <= share * false_alarm
    return sure


def _chance_of_more(k: int, n: int, rate: float) -> float:
    """Chance of more than `k` in `n` at this rate (binomial), k small."""
    return 1 - math.fsum(math.comb(n, j) * rate**j * (1 - rate) ** (n - j) for j in range(k + 1))


def _mixture_sure(begun: Ints, tried: Ints, limit: float, false_alarm: float) -> Bools:
    return _above(begun, tried, np.array([limit]), ABOVE)[:, 0] >= math.log(1 / false_alarm)


def _longest(burst: Ints, limit: float, false_alarm: float) -> Floats:
    """Length at which the j-th burst is longer than chance: each further failure has at most `limit` + `CORRELATION` (1 - `limit`)."""
    spent = LONG * false_alarm / (burst * (burst + 1.0))
    return 1 + np.log(spent) / math.log(limit + CORRELATION * (1 - limit))


def _lowest_rate(bursts: _Bursts, claim: _Claim) -> float:
    """The rate below which every rate is excluded by the count of bursts."""
    if bursts.begun == 0:
        return 0.0
    begun, tried = np.array([bursts.begun]), bursts.places[-1:]

    def excluded(rate: float) -> bool:
        soon = _too_soon(bursts.places, rate, claim.false_alarm).any()
        return bool(soon or _mixture_sure(begun, tried, rate, claim.false_alarm)[0])

    return _last(excluded, 1e-12, min(bursts.begun / bursts.tried, _CERTAIN))


def _highest_rate(bursts: _Bursts, claim: _Claim) -> float:
    """The rate from which on every rate is excluded."""
    if bursts.failures == bursts.n:
        return 1.0
    return _last(lambda rate: not _rate_excluded(bursts, rate, claim), max(bursts.failures / bursts.n, 1e-12), _CERTAIN)


def _rate_excluded(bursts: _Bursts, rate: float, claim: _Claim, clean: int = 0) -> bool:
    """Whether every rate from `rate` on is excluded, were `clean` more rows without a failure seen."""
    all_rows = _below(bursts.failures, bursts.n + clean, rate)
    beginnings = _below(bursts.begun, bursts.tried + clean, rate * (1 - claim.correlation))
    return min(all_rows, beginnings) >= math.log(1 / claim.miss)


def _more_clean(bursts: _Bursts, claim: _Claim, words: _Words) -> str:
    needed = _fewest(lambda clean: _rate_excluded(bursts, claim.exclude, claim, clean))
    return f"{needed} more {words.rows} without {words.once} would exclude {claim.exclude:.3%}"


# Likelihood ratios


def _above(begun: Ints, tried: Ints, nulls: Floats, prior: tuple[tuple[float, float], ...]) -> Floats:
    """Log of the likelihood ratio against every rate up to each of `nulls`, averaged over alternatives above it: a row per count."""
    places, shares = np.array(prior).T
    log_null = np.log(nulls)[:, None]
    log_rates = log_null * (1 - places)
    gain, loss = log_rates - log_null, np.log1p(-np.exp(log_rates)) - np.log1p(-nulls)[:, None]
    hits = begun.astype(float)[:, None, None]
    clean = (tried - begun).astype(float)[:, None, None]
    return np.asarray(np.logaddexp.reduce(np.log(shares) + hits * gain + clean * loss, axis=-1))


def _below(failures: int, n: int, null: float) -> float:
    """Log of the likelihood ratio against every rate from `null` on, averaged over alternatives below it."""
    return float(_below_each(np.array([failures]), np.array([n]), np.array([null]))[0, 0])


def _below_each(failures: Ints, n: Ints, nulls: Floats) -> Floats:
    shares, weights = np.array(BELOW).T
    gain = np.log1p(-nulls[:, None] * shares) - np.log1p(-nulls)[:, None]
    clean = (n - failures).astype(float)[:, None, None]
    return np.asarray(np.logaddexp.reduce(np.log(weights) + failures.astype(float)[:, None, None] * np.log(shares) + clean * gain, axis=-1))


# The candidate against stable


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """The candidate's requests that are compared, a row each, and what stable had shown by then.

    `bet_on`: its predecessor did not fail. `apart`: log of the evidence, the greatest so far, that failures are more the candidate's than
    its share explains. `stable_n`, `stable_failures`: of all stable's requests; `stable_begun`, `stable_tried`: of those bet on.
    """

    failed: Bools
    bet_on: Bools
    apart: Floats
    stable_n: Ints
    stable_failures: Ints
    stable_begun: Ints
    stable_tried: Ints

    @classmethod
    def of(cls, candidate: Served, stable: Served) -> _Pair:
        """Requests of the same instant: stable's count as earlier. Stable's from well before the candidate's first are left out."""
        stable = stable.where(stable.unix_s >= (candidate.unix_s[0] if len(candidate) else math.inf) - TOGETHER_S)
        before = np.searchsorted(stable.unix_s, candidate.unix_s, side="right")
        last = np.concatenate(([-math.inf], stable.unix_s))[before]
        kept = candidate.unix_s - last <= TOGETHER_S
        failed, stable_failed = ~candidate.ok, ~stable.ok
        stable_bet_on = _after_success(stable_failed)
        return cls(
            failed=failed[kept],
            bet_on=_after_success(failed)[kept],
            apart=_apart(candidate, stable)[kept],
            stable_n=before[kept],
            stable_failures=_so_far(stable_failed)[before[kept]],
            stable_begun=_so_far(stable_failed & stable_bet_on)[before[kept]],
            stable_tried=_so_far(stable_bet_on)[before[kept]],
        )

    @property
    def n(self) -> int:
        return len(self.failed)

    @property
    def rise(self) -> float:
        """The candidate's rate less stable's, as seen."""
        return float(self.failed.mean() - self.stable_failures[-1] / self.stable_n[-1])

    def until(self, row: int) -> _Pair:
        return _Pair(**{each.name: getattr(self, each.name)[: row + 1] for each in fields(self)})

    def first_sure(self, rise: float, false_alarm: float) -> int | None:
        """The first row at which the candidate's rate is surely above stable's plus `rise`, by both tests."""
        needed, above = math.log(1 / false_alarm), self.first_above(rise, false_alarm)
        both = self.failed & self.bet_on & (self.apart >= needed)
        rows = np.flatnonzero(both) if above is not None else np.zeros(0, np.int64)
        rows = rows[rows >= (above or 0)]
        return int(rows[0]) if len(rows) else None

    def first_above(self, rise: float, false_alarm: float) -> int | None:
        """The first row at which the test of constant rates is sure."""
        begun = np.flatnonzero(self.failed & self.bet_on)
        for start in range(0, len(begun), PIECE):
            rows = begun[start : start + PIECE]
            sure = self.evidence_above(rows, rise) >= math.log(1 / false_alarm)
            if sure.any():
                return int(rows[sure][0])
        return None

    def evidence_above(self, rows: Ints, rise: float) -> Floats:
        """Log of the smallest evidence, at each of these rows, against any rate of stable's with the candidate's at most `rise` above it.

        Between two edges the candidate is held against the upper one and stable against the lower one: that is evidence against every rate
        in between, so a finite number of cells covers all rates.
        """
        possible = _EDGES[1:] + rise > 0
        above = _above(
            np.cumsum(self.failed & self.bet_on, dtype=np.int64)[rows],
            np.cumsum(self.bet_on, dtype=np.int64)[rows],
            np.minimum(_EDGES[1:] + rise, _CERTAIN)[possible],
            ABOVE_STABLE,
        )
        own = _below_each(self.stable_begun[rows], self.stable_tried[rows], _EDGES[:-1][possible])
        return np.asarray((above + _staked(own)).min(axis=1))

    def evidence_below(self, rise: float, clean: int) -> float:
        """Log of the smallest evidence now against any rate of stable's with the candidate's at least `rise` above it.

        Every failure of the candidate's counts. `clean`: so many more of its requests, all well.
        """
        nulls = np.clip(_EDGES[:-1] + rise, 1e-12, _CERTAIN)
        below = _below_each(np.array([self.failed.sum()]), np.array([self.n + clean]), nulls)
        own = _above(self.stable_begun[-1:], self.stable_tried[-1:], np.minimum(_EDGES[1:], _CERTAIN), ABOVE_STABLE)
        return float((below + _staked(own)).min())


_EDGES = np.concatenate(([0.0], np.geomspace(1e-6, 1.0, CELLS)))


def _staked(evidence: Floats) -> Floats:
    return np.asarray(np.logaddexp(math.log(1 - STAKE), math.log(STAKE) + evidence))


def _so_far(marked: Bools) -> Ints:
    """How many are marked among the first 0, 1, 2, ... rows."""
    return np.concatenate(([0], np.cumsum(marked, dtype=np.int64)))


def _apart(candidate: Served, stable: Served) -> Floats:
    """At each of the candidate's rows: log of the evidence of all windows that ended before, the greatest so far, for `_Pair.apart`.

    One failure after the other is drawn from those of the window that are left, as often from either version as it has requests left or,
    in the alternatives, `ODDS` times as often from the candidate's.
    """
    window, mine, failed = _merged(candidate, stable)
    left_mine, left_stable = (_left(window, whose, whose & failed)[failed] for whose in (mine, ~mine))
    odds = np.array(ODDS)
    gain = np.log(np.where(mine[failed][:, None], odds, 1.0)) + np.log(left_mine + left_stable)[:, None]
    ratios = np.cumsum(gain - np.log(left_mine[:, None] * odds + left_stable[:, None]), axis=0)
    evidence = np.logaddexp.reduce(np.vstack([np.zeros(len(odds)), ratios]), axis=1) - math.log(len(odds))
    ended = np.searchsorted(window[failed], window[mine], side="left")
    return np.asarray(np.maximum.accumulate(evidence[ended])) if len(ended) else np.zeros(0)


def _merged(candidate: Served, stable: Served) -> tuple[Ints, Bools, Bools]:
    """All requests in order: the window of each, whether it is the candidate's, whether it failed."""
    times = np.concatenate([stable.unix_s, candidate.unix_s])
    order = np.argsort(times, kind="stable")
    mine = np.arange(len(times)) >= len(stable)
    return np.floor(times[order] / WINDOW_S).astype(np.int64), mine[order], ~np.concatenate([stable.ok, candidate.ok])[order]


def _left(window: Ints, theirs: Bools, drawn: Bools) -> Floats:
    """For each row: how many of these are in its window, less those drawn before it."""
    first, end = np.searchsorted(window, window, side="left"), np.searchsorted(window, window, side="right")
    all_so_far, drawn_so_far = _so_far(theirs), _so_far(drawn)
    return (all_so_far[end] - all_so_far[first] - drawn_so_far[:-1] + drawn_so_far[first]).astype(float)


def _not_above(name: str, pair: _Pair, claim: _Claim) -> Finding:
    first = pair.first_sure(claim.limit, claim.false_alarm)
    seen = pair if first is None else pair.until(first)
    excluded = first is None and _rise_excluded(seen, claim.exclude, claim)
    outcome = Outcome.FAILED if first is not None else Outcome.PASSED if excluded else Outcome.INCONCLUSIVE
    counts = f"{seen.failed.sum()} of {seen.n} requests failed, of stable's {seen.stable_failures[-1]} of {seen.stable_n[-1]}"
    return Finding(
        name=name,
        outcome=outcome,
        why=f"{counts}; {_rise_claimed(outcome, claim)}",
        observed=seen.rise,
        limit=claim.limit,
        interval=(_lowest_rise(seen, claim), _highest_rise(seen, claim)),
        n=seen.n,
        advice=_more_clean_beside_stable(seen, claim) if outcome is Outcome.INCONCLUSIVE else None,
    )


def _rise_claimed(outcome: Outcome, claim: _Claim) -> str:
    return (
        f"a rise of {claim.exclude:.3%} or more is excluded",
        f"that neither shows a rise of more than {claim.limit:.3%} nor excludes {claim.exclude:.3%}",
        f"surely a rise of more than {claim.limit:.3%}",
    )[outcome]


def _rise_excluded(pair: _Pair, rise: float, claim: _Claim, clean: int = 0) -> bool:
    """Whether every rise from `rise` on is excluded, were `clean` more rows without a failure seen."""
    return pair.evidence_below(rise, clean) >= math.log(1 / claim.miss)


def _lowest_rise(pair: _Pair, claim: _Claim) -> float:
    """The rise below which every rise is excluded, as of the row that decided or of the last one."""
    above = pair.first_above(claim.limit, claim.false_alarm)
    row = np.array([pair.n - 1 if above is None else above])
    needed = math.log(1 / claim.false_alarm)
    return _last(lambda rise: bool(pair.evidence_above(row, rise)[0] >= needed), -1.0, 1.0)


def _highest_rise(pair: _Pair, claim: _Claim) -> float:
    return _last(lambda rise: not _rise_excluded(pair, rise, claim), pair.rise, 1.0)


def _more_clean_beside_stable(pair: _Pair, claim: _Claim) -> str:
    """What of stable's stays as it is: more of its requests would only help."""

    def enough(clean: int) -> bool:
        return _rise_excluded(pair, claim.exclude, claim, clean)

    return f"{_fewest(enough)} more requests without a failure would exclude a rise of {claim.exclude:.3%}"


# Means of paired differences


def _shift_within(name: str, differences: Floats, claim: _Claim) -> Finding:
    low, high = _mean_bounds(differences, claim.false_alarm)
    sure = (low > claim.limit) | (high < -claim.limit)
    n = int(np.argmax(sure)) + 1 if sure.any() else len(differences)
    mean = float(differences[:n].mean())
    least, most = (float(bound[-1]) for bound in _mean_bounds(differences[:n], min(2 * claim.miss, 1.0)))  # only one side can pass wrongly
    excluded = not sure.any() and max(-least, most) < claim.exclude
    outcome = Outcome.FAILED if sure.any() else Outcome.PASSED if excluded else Outcome.INCONCLUSIVE
    words = (
        f"a shift of {claim.exclude:g} or more is excluded",
        f"that neither shows a shift of more than {claim.limit:g} nor excludes {claim.exclude:g}",
        f"surely a shift of more than {claim.limit:g}",
    )[outcome]
    return Finding(
        name=name,
        outcome=outcome,
        why=f"scores of {n} pairs shifted by {mean:.4g} on average; {words}",
        observed=mean,
        limit=claim.limit,
        interval=(float(low[n - 1]), float(high[n - 1])),
        n=n,
        advice=_more_pairs(mean, most - least, n, claim) if outcome is Outcome.INCONCLUSIVE else None,
    )


def _mean_bounds(differences: Floats, error: float) -> tuple[Floats, Floats]:
    """Bounds of the mean after each row, all of them true at once but for a chance of `error`; as in the paper, on (1 + difference) / 2."""
    values, rows = (1 + differences) / 2, np.arange(1, len(differences) + 1)
    mean = (0.5 + np.cumsum(values)) / (rows + 1)
    mean_before = np.concatenate(([0.5], mean[:-1]))
    spread = (0.25 + np.cumsum((values - mean) ** 2)) / (rows + 1)
    spread_before = np.concatenate(([0.25], spread[:-1]))
    bets = np.minimum(np.sqrt(2 * math.log(2 / error) / (spread_before * rows * np.log1p(rows))), CAUTIOUS)
    paid = math.log(2 / error) + np.cumsum((values - mean_before) ** 2 * (-np.log1p(-bets) - bets))
    total = np.cumsum(bets)
    centre, radius = np.cumsum(bets * values) / total, paid / total
    return 2 * np.maximum(centre - radius, 0) - 1, 2 * np.minimum(centre + radius, 1) - 1


def _more_pairs(mean: float, width: float, n: int, claim: _Claim) -> str:
    """The width falls about as the root of the rows."""
    room = claim.exclude - abs(mean)
    if room <= 0:
        return "more of the same would not help: the mean itself lies beyond what must be excluded"
    return f"about {max(1, math.ceil(n * (width / 2 / room) ** 2) - n)} more pairs like these would exclude a shift of {claim.exclude:g}"


# Searches


def _last(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The last point of `low` to `high` at which what holds at `low` still holds."""
    if holds(high):
        return high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _fewest(holds: Callable[[int], bool]) -> int:
    """The smallest number from 1 at which it holds."""
    high = 1
    while not holds(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _need(holds: bool, why: str) -> None:  # noqa: FBT001 - reads as a sentence: need this, or say why
    if not holds:
        raise ValueError(why)
