"""The judges: pure functions that turn counts and samples into findings. Gates and the rollout's watch call them; they do no I/O.

Two kinds. `errors_below` is always valid, for counts whose order is not known, as a mirror's: it may be asked every second and stopped at
any time, and the chance of ever saying `failed` of a good candidate stays below `false_alarm`, of ever saying `passed` of one at the margin
below `miss` (Ville 1939; Robbins 1970, "Statistical methods related to the law of the iterated logarithm"). Where requests are known in
order, `error_rates` and `latencies` judge them. The others judge one sample of a size that was fixed beforehand: counts of right answers by
tests for counts, every other metric by the mean of what its rows contribute (`Contributions`). They say in `why` which error rates they
have at this n. Several of them at once share one chance to err (`shared_error`).

Every judge says `failed` only when the claim is surely wrong, `passed` only when a departure by the margin is surely excluded, and
`inconclusive`, with what is missing, in between. A judge never sees a sample as good because it is empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

from validation.contract import Finding, Outcome

MIN_FAILURES = 2
"""One failed request never takes a candidate back, whatever its odds: it may be the network's. Costs a request or two of power."""

GRID = 48
"""Alternatives in the mixture of `errors_below`; neighbours differ by 15 % at a limit of 0.001."""


PASS_LOSSES = 0.155
"""`paired_not_worse` passes only what would pass with so much of a row more lost, and only what an exact test of the net loss passes too:
without the two, Tango's score passes up to 6.7 % of versions at the margin when discordant rows are rare; with them 5.0 % at most
(`tests/test_calibration.py` adds up the exact chances)."""

FAIL_WINS = 1
"""`paired_not_worse` fails only what would fail with one row more won: without it up to 8.9 % of versions at the margin, with it 4.8 %."""

MIN_ROWS = 50
"""Rows below which nothing is said about a mean: in 20 rows with a log-normal tail (sigma 1) the bounds erred in 6.9 %, in 50 in 4.8 %."""

UNUSABLE = 1e150
"""Numbers from here on have squares that are infinite in float64, and the inverses of such numbers have squares of 0."""

USUAL_POWER = 0.8
"""Chance at which a finding says how much better than its limit a version must be to pass."""

_LOOK = "look for the rows and the model that it comes from"
_NEVER = "more of the same would not help: the estimate itself lies beyond the margin"


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """A statistic and what each row contributes to it, so that one test serves all that are means, or nearly so, of rows.

    `values`: one number a row: its own loss where the statistic is a mean, else its influence (Hampel 1974, "The influence curve and its
    role in robust estimation"); only their spread is used. `estimate`: the statistic. `scale`: what a row unlike all that were seen is
    taken to contribute, at least. `over` and `under`: how far `estimate` lies at most above or below the truth on average; four times the
    rows halve it. All in the statistic's unit. `rows` is the word for what is counted, `note` a sentence for the finding.
    """

    estimate: float
    values: Sequence[float]
    scale: float
    over: float = 0.0
    under: float = 0.0
    rows: str = "rows"
    note: str = ""

    @property
    def readable(self) -> bool:
        """Whether every number is finite and the scale is more than nothing: else no judge says more than `inconclusive`."""
        return self.scale > 1 / UNUSABLE and all(map(_usable, (self.estimate, self.scale, self.over, self.under, *self.values)))


def errors_below(*, name: str, failures: int, n: int, limit: float, exclude: float, false_alarm: float, miss: float) -> Finding:
    """Is the error rate at most `limit`? Always valid; depends on the two counts only, so it may be asked after every request.

    Failed: the rate is surely above `limit`. The evidence is a likelihood ratio against `limit`, averaged over alternatives above it
    (log-uniform); for every rate up to `limit` it is a supermartingale that starts at 1, so by Ville's inequality it passes
    1/`false_alarm` with at most that chance, however often one looks (Robbins 1970; Waudby-Smith and Ramdas 2024, "Estimating means of
    bounded random variables by betting"). Passed: a rate of `exclude` or more is excluded in the same way, at 1/`miss`.
    The interval holds the rates that neither test excludes: lower end at `false_alarm`, upper end at `miss`.
    """
    _counts(failures, n)
    exclude = min(exclude, 1 - 1e-9)  # a rate of 1 is excluded by the first answer
    _within(0, limit, 1)
    _within(limit, exclude, 1)
    _budgets(false_alarm, miss)
    lower = _lowest_rate(failures, n, math.log(1 / false_alarm))
    upper = _highest_rate(failures, n, math.log(1 / miss))
    if failures >= MIN_FAILURES and _evidence_above(failures, n, limit) >= math.log(1 / false_alarm):
        outcome, advice = Outcome.FAILED, None
        why = f"{failures} of {n} requests failed, surely more than {limit:.4%}"
    elif n and _evidence_below(failures, n, exclude) >= math.log(1 / miss):
        outcome, advice = Outcome.PASSED, None
        why = f"{failures} of {n} requests failed; {exclude:.3%} or more is excluded"
    else:
        outcome, advice = Outcome.INCONCLUSIVE, _more_clean_requests(failures, n, exclude, miss)
        why = f"{failures} of {n} requests failed; that neither shows more than {limit:.4%} nor excludes {exclude:.3%}"
    return Finding(
        name=name, outcome=outcome, why=why, observed=failures / n if n else None, limit=limit, interval=(lower, upper), n=n, advice=advice
    )


def accuracy_at_least(*, name: str, correct: int, n: int, limit: float, error: float) -> Finding:
    """Is the share of right answers at least `limit`? Exact one-sided binomial bounds, each wrong with chance `error` at most.

    Passed: the lower bound reaches `limit`. Failed: the upper bound lies below it (Clopper and Pearson 1934). One look at one sample.
    """
    _counts(correct, n)
    _budgets(error)
    if n == 0:
        return _nothing(name, "no rows: nothing was shown", "give the golden set rows", limit)
    lower, upper = _binomial_interval(correct, n, error)
    share = correct / n
    outcome = Outcome.PASSED if lower >= limit else Outcome.FAILED if upper < limit else Outcome.INCONCLUSIVE
    claim, spread = _AT_LEAST.words[outcome], math.sqrt(share * (1 - share) / n)
    return Finding(
        name=name,
        outcome=outcome,
        why=f"{correct} of {n} rows are right ({share:.4f}), {claim} {limit:.4f}; {_resolves(share - lower, spread, error)}",
        observed=share,
        limit=limit,
        interval=(lower, upper),
        n=n,
        advice=_more_rows_for_share(share, n, limit, error) if outcome is Outcome.INCONCLUSIVE else None,
    )


def paired_not_worse(*, name: str, wins: int, losses: int, n: int, margin: float, error: float) -> Finding:
    """Is the candidate's accuracy at most `margin` below the reference's on the same `n` rows?

    `losses` are rows where only the reference is right, `wins` where only the candidate is. Score interval for a paired difference
    (Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design"), one-sided
    error `error` on either side, which `PASS_LOSSES` and `FAIL_WINS` make it keep when discordant rows are few.
    `observed` and the interval are reference minus candidate.
    """
    _counts(wins, n - losses)
    _counts(losses, n)
    _within(0, margin, 1)
    _budgets(error)
    if n == 0:
        return _nothing(name, "no rows: nothing was shown", "give the golden set rows", margin)
    z = NormalDist().inv_cdf(1 - error)
    outcome = Outcome.PASSED if _pairs_pass(wins, losses, n, margin, error) else Outcome.INCONCLUSIVE
    outcome = Outcome.FAILED if _tango(wins + FAIL_WINS, losses, n + FAIL_WINS, margin) >= z else outcome
    claim = ("surely not worse by", "neither surely better nor surely worse than a loss of", "surely worse by more than")[outcome]
    net, interval = (losses - wins) / n, _tango_interval(wins, losses, n, error)
    rates = _rates(margin, (net - interval[0], interval[1] - net), math.sqrt(wins + losses) / n, error)
    return Finding(
        name=name,
        outcome=outcome,
        why=f"of {n} rows {losses} were lost and {wins} won (net loss {net:.4f}), {claim} {margin:.4f}; {rates}",
        observed=net,
        limit=margin,
        interval=interval,
        n=n,
        advice=_more_rows_for_pairs(wins, losses, n, margin, error) if outcome is Outcome.INCONCLUSIVE else None,
    )


def mean_at_most(*, name: str, contributions: Contributions, limit: float, error: float) -> Finding:
    """Is the statistic at most `limit`? Passed and failed are each wrong with chance `error` at most; `_bounds` says how."""
    return _against_limit(name, contributions, limit, error, _AT_MOST)


def mean_at_least(*, name: str, contributions: Contributions, limit: float, error: float) -> Finding:
    """Is the statistic at least `limit`? The mirror image of `mean_at_most`."""
    return _against_limit(name, contributions, limit, error, _AT_LEAST)


def paired_mean_not_worse(
    *, name: str, candidate: Contributions, reference: Contributions, margin: float, error: float, higher_is_better: bool, relative: bool
) -> Finding:
    """Is the candidate's statistic worse than the reference's on the same rows by `margin` at most?

    Judges the differences row by row, so that what both versions find hard cancels. `observed` and the interval are the `worsening`: a
    share of the reference's statistic if `relative`, else in its own unit. Raises `ValueError` when the rows cannot be pairs.
    """
    _within(0, margin, math.inf)
    _budgets(error)
    if len(candidate.values) != len(reference.values):
        raise ValueError(f"{len(candidate.values)} and {len(reference.values)} {reference.rows} are no pairs")
    if trouble := _incomparable(candidate, reference, relative=relative):
        return _nothing(name, trouble, _LOOK, margin)
    worse = worsening(candidate, reference, higher_is_better=higher_is_better, relative=relative)
    if not worse.readable:
        return _nothing(name, _unreadable(worse), _LOOK, margin)
    what = f"{candidate.estimate:.6g} against {reference.estimate:.6g} on the same {len(worse.values)} {worse.rows}"
    return _against_margin(name, _sample(worse), margin, error, _joined_words(what, worse.note))


def unpaired_mean_not_worse(
    *, name: str, candidate: Contributions, logged: float, margin: float, error: float, higher_is_better: bool, relative: bool
) -> Finding:
    """Is the candidate's statistic worse than `logged` by `margin` at most, where the logged value was found on other rows?

    Nothing cancels, and the logged value has a sampling error of its own that nobody wrote down: it is taken to come from as many rows
    with as much spread as the candidate's, which doubles the variance. Logged on fewer rows, the answer is surer than it should be.
    """
    _within(0, margin, math.inf)
    _budgets(error)
    reference = replace(candidate, estimate=logged)
    if trouble := _incomparable(candidate, reference, relative=relative):
        return _nothing(name, trouble, _LOOK, margin)
    alone = worsening(
        candidate, replace(reference, values=(0.0,) * len(candidate.values)), higher_is_better=higher_is_better, relative=relative
    )
    what = (
        f"{candidate.estimate:.6g} on {len(alone.values)} {alone.rows} against {logged:.6g} logged on others: not paired, 1.4 times as wide"
    )
    return _against_margin(name, _of_two(_sample(alone)), margin, error, _joined_words(what, alone.note))


def worsening(candidate: Contributions, reference: Contributions, *, higher_is_better: bool, relative: bool) -> Contributions:
    """How much worse the candidate is on the same rows: positive is worse; a share of the reference's statistic if `relative`.

    The share's contributions are those of a quotient (delta method), so that multiplying both by a unit changes nothing.
    """
    whole = reference.estimate if relative else 1.0
    ratio = candidate.estimate / whole if relative else 1.0
    sign = (-1 if higher_is_better else 1) / whole
    biases = (candidate.over + ratio * reference.under) / whole, (candidate.under + ratio * reference.over) / whole
    over, under = reversed(biases) if higher_is_better else biases
    return Contributions(
        estimate=sign * (candidate.estimate - reference.estimate) + 0.0,  # no -0
        values=[sign * (one - ratio * other) for one, other in zip(candidate.values, reference.values, strict=True)],
        scale=max(candidate.scale, ratio * reference.scale) / whole,
        over=over,
        under=under,
        rows=candidate.rows,
        note=candidate.note or reference.note,
    )


def shared_error(error: float, comparisons: int) -> float:
    """Each comparison's share of `error`, so that all of them together err with that chance at most (Bonferroni).

    Sidak's and Holm's shares are larger, but Sidak's needs comparisons that do not lean on each other, and slices share rows; Holm's share
    of one depends on what the others found, and then a finding could not be read alone.
    """
    _budgets(error)
    if comparisons < 1:
        raise ValueError(f"{comparisons} comparisons share nothing")
    return error / comparisons


def quantile_within(*, name: str, over: int, n: int, quantile: float, limit_ms: float, observed_ms: float, error: float) -> Finding:
    """Does the `quantile` of latency lie within `limit_ms`, when `over` of `n` queries took longer (or failed)?

    Exact binomial test as in MLPerf LoadGen's early stopping: passed when so few slow queries would be seen with chance `error` at most
    were the quantile at the limit; at 99 % confidence a p99 needs 459 queries with none over, 662 with one. Failed is the mirror image.
    Takes queries as independent; stalls that hit several in a row make both answers a little surer than they should be.
    """
    _counts(over, n)
    _within(0, quantile, 1)
    _budgets(error)
    if not math.isfinite(observed_ms) or n == 0:
        return _nothing(name, f"the observed quantile is {observed_ms} ms over {n} queries", "measure again", limit_ms)
    few, many = _at_most(over, n, 1 - quantile), 1 - _at_most(over - 1, n, 1 - quantile)
    outcome = Outcome.PASSED if few <= error else Outcome.FAILED if many <= error else Outcome.INCONCLUSIVE
    claim = ("surely within", "not surely on either side of", "surely over")[outcome]
    return Finding(
        name=name,
        outcome=outcome,
        why=f"{over} of {n} queries took longer than {limit_ms:g} ms: p{100 * quantile:g} ({observed_ms:.2f} ms) is {claim} the limit",
        observed=observed_ms,
        limit=limit_ms,
        n=n,
        advice=_more_queries(over, n, quantile, error) if outcome is Outcome.INCONCLUSIVE else None,
    )


def queries_needed(*, over: int, quantile: float, error: float) -> int:
    """The fewest queries with which `over` slow ones still show the quantile within its limit (459 for none, p99 and error 0.01)."""
    return _first(lambda n: _at_most(over, n, 1 - quantile) <= error, over + 1)


# Evidence about a rate


def _evidence_above(failures: int, n: int, null: float) -> float:
    """Log of the mixture likelihood ratio against every rate up to `null`."""
    return _mixture(failures, n, null, _grid_above(null))


def _evidence_below(failures: int, n: int, null: float) -> float:
    """Log of the mixture likelihood ratio against every rate from `null` on."""
    return _mixture(failures, n, null, _grid_below(null))


def _mixture(failures: int, n: int, null: float, grid: tuple[tuple[float, float], ...]) -> float:
    hit, clean = math.log(null), math.log1p(-null)
    ratios = [failures * (log_p - hit) + (n - failures) * (log_q - clean) for log_p, log_q in grid]
    top = max(ratios)
    return top + math.log(sum(math.exp(each - top) for each in ratios) / len(ratios))


@lru_cache(maxsize=256)
def _grid_above(null: float) -> tuple[tuple[float, float], ...]:
    return _logs(null ** (1 - (k + 0.5) / GRID) for k in range(GRID))


@lru_cache(maxsize=256)
def _grid_below(null: float) -> tuple[tuple[float, float], ...]:
    return _logs(null * 1000 ** (-(k + 0.5) / GRID) for k in range(GRID))


def _logs(rates: Iterable[float]) -> tuple[tuple[float, float], ...]:
    return tuple((math.log(rate), math.log1p(-rate)) for rate in rates)


def _lowest_rate(failures: int, n: int, needed: float) -> float:
    """The rate below which every rate is excluded: 0 with fewer failures than may exclude one."""
    if failures < MIN_FAILURES:
        return 0.0
    return _bisect(lambda rate: _evidence_above(failures, n, rate) >= needed, 1e-12, failures / n)


def _highest_rate(failures: int, n: int, needed: float) -> float:
    if n in {0, failures}:
        return 1.0
    return _bisect(lambda rate: _evidence_below(failures, n, rate) < needed, failures / n or 1e-12, 1 - 1e-12)


def _more_clean_requests(failures: int, n: int, exclude: float, miss: float) -> str:
    needed = _first(lambda total: _evidence_below(failures, total, exclude) >= math.log(1 / miss), max(n, 1))
    return f"{needed - n} more requests without a failure would exclude {exclude:.3%}"


# Fixed samples


def _binomial_interval(successes: int, n: int, error: float) -> tuple[float, float]:
    """Exact bounds of a share, each wrong with chance `error` at most (Clopper and Pearson 1934)."""
    lower = _bisect(lambda p: 1 - _at_most(successes - 1, n, p) <= error, 0, successes / n) if successes else 0.0
    upper = _bisect(lambda p: _at_most(successes, n, p) > error, successes / n, 1) if successes < n else 1.0
    return lower, upper


def _at_most(k: int, n: int, p: float) -> float:
    """Chance of at most `k` successes in `n` trials of chance `p`, summed from the nearer end."""
    if k < 0 or k >= n:
        return float(k >= n)
    if p <= 0 or p >= 1:
        return float(p <= 0)
    if k > n * p:
        return 1 - _at_most(n - k - 1, n, 1 - p)
    term = total = 1.0
    for i in range(k, 0, -1):  # from the greatest term down; each is the one above it times a ratio below 1
        term *= i * (1 - p) / ((n - i + 1) * p)
        total += term
        if term < total * 1e-17:
            break
    log_choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p)) * total


def _tango(wins: float, losses: float, n: float, loss: float) -> float:
    """Score statistic of Tango (1998) for a true net loss of `loss`: large when more was lost than that."""
    linear = (2 * n - losses + wins) * loss - wins - losses
    root = math.sqrt(linear**2 + 8 * n * wins * loss * (1 - loss)) if loss < 1 else abs(linear)
    won = max((root - linear) / (4 * n), 0.0)  # the likeliest share of wins when the net loss is `loss`
    variance = n * (2 * won + loss * (1 - loss))
    gap = losses - wins - n * loss
    return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0


def _pairs_pass(wins: float, losses: float, n: int, margin: float, error: float) -> bool:
    """By Tango's score, and by the exact chance of so few losses (Clopper and Pearson 1934) as if nothing had been won."""
    score = _tango(wins, losses + PASS_LOSSES, n + PASS_LOSSES, margin)
    return score <= -NormalDist().inv_cdf(1 - error) and _at_most(max(math.ceil(losses - wins), 0), n, margin) <= error


def _tango_interval(wins: int, losses: int, n: int, error: float) -> tuple[float, float]:
    """Where the pass and the fail of `paired_not_worse` begin; the lower end by the same score with the two sides exchanged."""
    z, won, rows = NormalDist().inv_cdf(1 - error), wins + FAIL_WINS, n + FAIL_WINS
    lower = -_bisect(lambda loss: _tango(losses, won, rows, loss) > -z, (won - losses) / rows, 1)
    return lower, _bisect(lambda loss: not _pairs_pass(wins, losses, n, loss, error), (losses - wins) / n, 1)


def _more_rows_for_share(share: float, n: int, limit: float, error: float) -> str:
    if share <= limit:
        return _NEVER
    gap, z = share - limit, NormalDist().inv_cdf(1 - error)
    needed = z**2 * limit * (1 - limit) / gap**2 + 2 / gap  # the normal approximation, and the steps of whole rows
    return f"about {max(math.ceil(needed) - n, 1)} more golden rows at this accuracy would settle it"


def _more_rows_for_pairs(wins: int, losses: int, n: int, margin: float, error: float) -> str:
    if (losses - wins) / n >= margin:
        return _NEVER
    needed = _first(lambda total: _pairs_pass(wins * total / n, losses * total / n, total, margin, error), n + 1)
    return f"about {needed - n} more golden rows like these would settle it"


def _more_queries(over: int, n: int, quantile: float, error: float) -> str:
    if over / n >= 1 - quantile:
        return _NEVER
    needed = _first(lambda total: _at_most(math.ceil(over * total / n), total, 1 - quantile) <= error, n + 1)
    return f"about {needed - n} more queries like these would settle it"


# Evidence about a mean of contributions


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """What the tests use of contributions. `above` and `below`: the farthest from their mean on either side, the scale at least."""

    estimate: float
    n: int
    variance: float
    above: float
    below: float
    over: float
    under: float
    rows: str


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """Which side of the limit is good, and the words for passed, inconclusive and failed."""

    at_least: bool
    words: tuple[str, str, str]


_AT_MOST = _Claim(at_least=False, words=("surely at most", "not surely on either side of", "surely above"))
_AT_LEAST = _Claim(at_least=True, words=("surely at least", "not surely on either side of", "surely below"))
_NOT_WORSE = _Claim(
    at_least=False, words=("surely not worse by", "neither surely better nor surely worse than by", "surely worse by more than")
)


def _sample(contributions: Contributions) -> _Sample:
    n = len(contributions.values)
    mean = math.fsum(contributions.values) / max(n, 1)
    departures = [each - mean for each in contributions.values]
    return _Sample(
        estimate=contributions.estimate,
        n=n,
        variance=math.fsum(each * each for each in departures) / max(n - 1, 1),
        above=max(contributions.scale, max(departures, default=0.0)),
        below=max(contributions.scale, -min(departures, default=0.0)),
        over=contributions.over,
        under=contributions.under,
        rows=contributions.rows,
    )


def _of_two(sample: _Sample) -> _Sample:
    """The difference from a value found on as many other rows with as much spread: both sides' errors add up."""
    far, bias = sample.above + sample.below, sample.over + sample.under
    return replace(sample, variance=2 * sample.variance, above=far, below=far, over=bias, under=bias)


def _bounds(sample: _Sample, error: float, n: int | None = None) -> tuple[float, float]:
    """One-sided confidence bounds of the statistic, each wrong with chance `error` at most, were there `n` rows like these.

    Student's bounds alone pass too easily when what matters is rare: among few rows the bad ones are not seen, and then the spread is
    not seen either. So the sample is judged with `_unseen` rows more at the farthest value seen on the side of the bound, or at the
    scale. Without any spread that makes about 3.4 scale / margin rows (Poisson's exact bound: 3.0), with much of it next to nothing. The
    bounds of a bias are added. Rows far beyond all that were seen, no sample excludes: the finding says what they are taken to cost.
    """
    n = n or sample.n
    bias = math.sqrt(sample.n / n)
    lower = sample.estimate - bias * sample.over - _allowance(n, sample.variance, sample.below, error)
    return lower, sample.estimate + bias * sample.under + _allowance(n, sample.variance, sample.above, error)


def _allowance(n: int, variance: float, farthest: float, error: float) -> float:
    z = NormalDist().inv_cdf(1 - error)
    unseen = _unseen(z)
    return (unseen * farthest + _student(z, n - 1) * math.sqrt(n * variance + unseen * farthest**2)) / n


def _unseen(z: float) -> float:
    """Rows to add: (z^2 + 1.5) / 3, 1.4 at 5 %. Between the term that corrects a Poisson count's skew, (z^2 + 0.5) / 3 (Hall 1992), and
    that of its exact bound, (z^2 + 2) / 3, which also pays for counts being whole.
    """
    return (z * z + 1.5) / 3


def _student(z: float, freedom: float) -> float:
    """Student's quantile from the normal one (Abramowitz and Stegun 26.7.5); within 0.1 % from 49 degrees of freedom on, to z = 3.7."""
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def _against_limit(name: str, contributions: Contributions, limit: float, error: float, claim: _Claim) -> Finding:
    _budgets(error)
    if not math.isfinite(limit):
        raise ValueError(f"the limit is {limit}: it must be finite")
    if not contributions.readable:
        return _nothing(name, _unreadable(contributions), _LOOK, limit)
    sample = _sample(contributions)
    far, bias = (sample.below, sample.over) if claim.at_least else (sample.above, sample.under)
    width = bias + _allowance(max(sample.n, MIN_ROWS), sample.variance, far, error)
    what = _joined_words(f"{sample.estimate:.6g} on {sample.n} {sample.rows}", contributions.note)
    return _mean_finding(name, sample, limit, error, claim, what=what, rates=_resolves(width, _standard_error(sample), error, far))


def _against_margin(name: str, sample: _Sample, margin: float, error: float, what: str) -> Finding:
    lower, upper = _bounds(sample, error, max(sample.n, MIN_ROWS))
    widths = sample.estimate - lower, upper - sample.estimate
    rates = _rates(margin, widths, _standard_error(sample), error, sample.above)
    return _mean_finding(name, sample, margin, error, _NOT_WORSE, what=what, rates=rates)


def _standard_error(sample: _Sample) -> float:
    return math.sqrt(sample.variance / max(sample.n, 1))


def _mean_finding(name: str, sample: _Sample, limit: float, error: float, claim: _Claim, *, what: str, rates: str) -> Finding:
    if sample.n < MIN_ROWS:
        needed = max(_rows_needed(sample, limit, error, claim), MIN_ROWS)
        why = f"{what}: too few to say anything of a mean"
        advice = f"about {needed - sample.n} more golden {sample.rows} are needed"
        return Finding(name=name, outcome=Outcome.INCONCLUSIVE, why=why, limit=limit, n=sample.n, advice=advice)
    interval = _bounds(sample, error)
    outcome = _mean_outcome(interval, limit, claim)
    return Finding(
        name=name,
        outcome=outcome,
        why=f"{what}, {claim.words[outcome]} {limit:.6g}; {rates}",
        observed=sample.estimate,
        limit=limit,
        interval=interval,
        n=sample.n,
        advice=_more_rows_for_mean(sample, limit, error, claim) if outcome is Outcome.INCONCLUSIVE else None,
    )


def _mean_outcome(bounds: tuple[float, float], limit: float, claim: _Claim) -> Outcome:
    good, bad = bounds if claim.at_least else (-bounds[1], -bounds[0])
    sided = limit if claim.at_least else -limit
    return Outcome.PASSED if good >= sided else Outcome.FAILED if bad < sided else Outcome.INCONCLUSIVE


def _more_rows_for_mean(sample: _Sample, limit: float, error: float, claim: _Claim) -> str:
    needed = _rows_needed(sample, limit, error, claim)
    return _NEVER if needed == 0 else f"about {needed - sample.n} more golden {sample.rows} like these would settle it"


def _rows_needed(sample: _Sample, limit: float, error: float, claim: _Claim) -> int:
    """With how many rows like these the claim would pass; 0 when never."""
    beyond = sample.estimate - limit if claim.at_least else limit - sample.estimate
    if not beyond > 0:
        return 0
    return _first(lambda n: _mean_outcome(_bounds(sample, error, n), limit, claim) is Outcome.PASSED, max(sample.n + 1, MIN_ROWS))


def _incomparable(candidate: Contributions, reference: Contributions, *, relative: bool) -> str | None:
    for each in (candidate, reference):
        if not each.readable:
            return _unreadable(each)
    if relative and reference.estimate <= 0:
        return f"the value to compare with is {reference.estimate:g}: no margin can be a share of it"
    return None


def _unreadable(contributions: Contributions) -> str:
    bad = sum(not _usable(each) for each in contributions.values)
    return f"the estimate is {contributions.estimate:g} and {bad} of {len(contributions.values)} {contributions.rows} have no finite value"


# What a test of this size can tell


def _rates(margin: float, widths: tuple[float, float], spread: float, error: float, far: float | None = None) -> str:
    """Of a comparison with a margin: `widths` from the estimate down and up to its bounds, `spread` the estimate's standard error."""
    passes, fails = _chance(margin - widths[1], spread), _chance(-margin - widths[0], spread)
    return f"{_at_this_n(far)}: passed at the margin <= {_percent(error)}, an equal version passed {_about(passes)}, failed {_about(fails)}"


def _resolves(width: float, spread: float, error: float, far: float | None = None) -> str:
    """Of a comparison with a limit: how much better than the limit a version must be to pass with `USUAL_POWER`."""
    better = width + NormalDist().inv_cdf(USUAL_POWER) * spread
    return f"{_at_this_n(far)}: passed at the limit <= {_percent(error)}, passed when better by {better:.2g} {_about(USUAL_POWER)}"


def _at_this_n(far: float | None) -> str:
    """With what a row unlike all that were seen is taken to cost, where the test depends on it."""
    return "at this n" if far is None else f"at this n, if a row unseen costs {far:.2g} at most"


def _chance(distance: float, spread: float) -> float:
    """That a normal error of this spread stays below the distance."""
    return NormalDist().cdf(distance / spread) if spread > 0 else float(distance >= 0)


def _percent(chance: float) -> str:
    return f"{100 * chance:.2g} %"


def _about(chance: float) -> str:
    return "> 99 %" if chance > 0.99 else "< 1 %" if chance < 0.01 else f"~ {_percent(chance)}"


def _joined_words(what: str, note: str) -> str:
    return f"{what} ({note})" if note else what


# Search and checks


def _first(holds: Callable[[int], bool], start: int) -> int:
    """The smallest whole number from `start` on where `holds`, which stays true once it is; gives up at a thousand million."""
    if holds(start):
        return start
    low, high = start, 2 * start
    while not holds(high) and high < 10**9:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The end of the range, from `low` up, where `holds`."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _usable(value: float) -> bool:
    """Finite, and its square too."""
    return abs(value) < UNUSABLE  # False for NaN


def _nothing(name: str, why: str, advice: str, limit: float) -> Finding:
    return Finding(name=name, outcome=Outcome.INCONCLUSIVE, why=why, limit=limit, n=0, advice=advice)


def _counts(part: int, n: int) -> None:
    if not 0 <= part <= n:
        raise ValueError(f"{part} of {n} is no count")


def _within(low: float, value: float, high: float) -> None:
    if not low < value < high:
        raise ValueError(f"{value} must lie between {low} and {high}")


def _budgets(*chances: float) -> None:
    for chance in chances:
        _within(0, chance, 1)
