"""The judges: pure functions that turn counts and samples into findings. Gates and the rollout's watch call them; they do no I/O.

Two kinds. `errors_below` and `not_slower` are always valid: they may be asked every second and stopped at any time, and the chance of
ever saying `failed` of a good candidate stays below `false_alarm`, of ever saying `passed` of one at the margin below `miss` (Ville 1939;
Robbins 1970, "Statistical methods related to the law of the iterated logarithm"; Howard, Ramdas, McAuliffe and Sekhon 2021, "Time-uniform,
nonparametric, nonasymptotic confidence sequences"). The others judge one sample of a size that was fixed beforehand.

Every judge says `failed` only when the claim is surely wrong, `passed` only when a departure by the margin is surely excluded, and
`inconclusive`, with what is missing, in between. A judge never sees a sample as good because it is empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from validation.contract import Finding, Outcome

MIN_FAILURES = 2
"""One failed request never takes a candidate back, whatever its odds: it may be the network's. Costs a request or two of power."""

GRID = 48
"""Alternatives in the mixture of `errors_below`; neighbours differ by 15 % at a limit of 0.001."""

MIN_BLOCKS = 5
"""Seconds with traffic below which nothing is said about latency: a spread cannot be seen in fewer."""

REQUEST_SPREAD = 0.3
"""Standard deviation of a request's log latency that is added to what was seen: a few equal values are no certainty."""

PRIOR_BLOCKS = 0.1
"""Weight of the prior on the effect in `not_slower`, in blocks: small, because gross effects must show within seconds (see `_slack`)."""

_NEVER = "more of the same would not help: the estimate itself lies beyond the margin"


@dataclass(frozen=True, kw_only=True)
class Block:
    """The requests of one second: how many, and the mean of their natural-log latencies (ms)."""

    n: int
    mean: float


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


def not_slower(
    *, name: str, candidate: Sequence[Block], stable: Sequence[Block], worse: float, exclude: float, false_alarm: float, miss: float
) -> Finding:
    """Is the candidate's latency at most (1 + `worse`) times stable's? Always valid; compares geometric means, from blocks of one second.

    Failed: the ratio is surely above 1 + `worse`. Passed: surely below 1 + `exclude`. The interval is the ratio's: lower end at
    `false_alarm`, upper end at `miss`, each spent half on either version (union bound), so that the samples may differ in size and spread
    and may share their slow seconds. See `_mean_interval` for the confidence sequence, and for what correlated requests do to it.
    A block that is not finite makes it inconclusive: a latency that cannot be read is no evidence.
    """
    _within(0, worse, math.inf)
    _within(0, exclude, math.inf)
    _budgets(false_alarm, miss)
    if not all(math.isfinite(each.mean) and each.n > 0 for each in (*candidate, *stable)):
        return _nothing(name, "a latency is missing, not finite or not positive", "look for the cause in the access log", 1 + worse)
    if min(len(candidate), len(stable)) < MIN_BLOCKS:
        seen = f"{len(candidate)} seconds with traffic on the candidate and {len(stable)} on stable"
        return _nothing(name, f"{seen} are too few to compare", f"wait for {MIN_BLOCKS} of each", 1 + worse)
    return _slower(name, candidate, stable, _Margins(worse=worse, exclude=exclude, false_alarm=false_alarm, miss=miss))


def log_blocks(rows: Iterable[tuple[float, float]], floor_ms: float) -> list[Block]:
    """Requests as (unix time in s, latency in ms) to blocks of one second in order of time; latencies below `floor_ms` count as `floor_ms`.

    A row that cannot be read (not finite, latency not positive) makes its block's mean NaN, which no judge passes.
    """
    seconds: dict[int, list[float]] = {}
    for unix_s, latency_ms in rows:
        second = math.floor(unix_s) if math.isfinite(unix_s) else -1
        readable = second >= 0 and math.isfinite(latency_ms) and latency_ms > 0
        seconds.setdefault(second, []).append(math.log(max(latency_ms, floor_ms)) if readable else math.nan)
    return [Block(n=len(logs), mean=math.fsum(logs) / len(logs)) for _, logs in sorted(seconds.items())]


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
    claim = ("surely at least", "not surely on either side of", "surely below")[outcome]
    return Finding(
        name=name,
        outcome=outcome,
        why=f"{correct} of {n} rows are right ({share:.4f}), {claim} {limit:.4f}",
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
    error `error` on either side; it stays right when no row is discordant. `observed` and the interval are reference minus candidate.
    """
    _counts(wins, n - losses)
    _counts(losses, n)
    _within(0, margin, 1)
    _budgets(error)
    if n == 0:
        return _nothing(name, "no rows: nothing was shown", "give the golden set rows", margin)
    z = NormalDist().inv_cdf(1 - error)
    score = _tango(wins, losses, n, margin)
    outcome = Outcome.PASSED if score <= -z else Outcome.FAILED if score >= z else Outcome.INCONCLUSIVE
    claim = ("surely not worse by", "neither surely better nor surely worse than a loss of", "surely worse by more than")[outcome]
    return Finding(
        name=name,
        outcome=outcome,
        why=f"of {n} rows {losses} were lost and {wins} won (net loss {(losses - wins) / n:.4f}), {claim} {margin:.4f}",
        observed=(losses - wins) / n,
        limit=margin,
        interval=_tango_interval(wins, losses, n, z),
        n=n,
        advice=_more_rows_for_pairs(wins, losses, n, margin, z) if outcome is Outcome.INCONCLUSIVE else None,
    )


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


# Evidence about a mean of log latencies


@dataclass(frozen=True, kw_only=True)
class _Margins:
    worse: float
    exclude: float
    false_alarm: float
    miss: float


def _slower(name: str, candidate: Sequence[Block], stable: Sequence[Block], margins: _Margins) -> Finding:
    lower, upper = _ratio_bounds(candidate, stable, margins)
    worse, exclude = 1 + margins.worse, 1 + margins.exclude
    outcome = Outcome.FAILED if lower > worse else Outcome.PASSED if upper < exclude else Outcome.INCONCLUSIVE
    claim = (
        f"{exclude:.2f} or more is excluded",
        f"that neither shows more than {worse:.2f} nor excludes {exclude:.2f}",
        f"surely more than {worse:.2f}",
    )[outcome]
    ratio = _exp(_mean(candidate) - _mean(stable))
    requests = sum(each.n for each in candidate)
    return Finding(
        name=name,
        outcome=outcome,
        why=f"{requests} requests took {ratio:.2f} times as long as stable's (geometric mean); {claim}",
        observed=ratio,
        limit=worse,
        interval=(lower, upper),
        n=requests,
        advice=_more_seconds(candidate, stable, margins) if outcome is Outcome.INCONCLUSIVE else None,
    )


def _ratio_bounds(candidate: Sequence[Block], stable: Sequence[Block], margins: _Margins, repeated: float = 1) -> tuple[float, float]:
    """Lower bound of the ratio at `false_alarm` and upper one at `miss`, were each sample repeated so many times."""
    slowest = _mean_interval(candidate, margins.false_alarm / 2, repeated)[0] - _mean_interval(stable, margins.false_alarm / 2, repeated)[1]
    fastest = _mean_interval(candidate, margins.miss / 2, repeated)[1] - _mean_interval(stable, margins.miss / 2, repeated)[0]
    return _exp(slowest), _exp(fastest)


def _mean_interval(blocks: Sequence[Block], error: float, repeated: float = 1) -> tuple[float, float]:
    """Confidence sequence for the mean of log latencies: the widest of those from blocks of 1, 2, 4, ... seconds.

    Requests of one second share its troubles, so the second is the unit; and as seconds may resemble their neighbours, longer blocks are
    formed as soon as there are enough of them, and the widest interval counts. In the limit each is the asymptotic confidence sequence of
    Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024, "Time-uniform central limit theory and asymptotic confidence sequences").
    """
    intervals = []
    length = 1
    while length == 1 or len(blocks) // length >= 2 * MIN_BLOCKS:
        intervals.append(_block_interval(_joined(blocks, length), error, repeated))
        length *= 2
    return min(low for low, _ in intervals), max(high for _, high in intervals)


def _block_interval(blocks: Sequence[Block], error: float, repeated: float) -> tuple[float, float]:
    """The means that the t-statistic's mixture does not exclude: roots of a quadratic, infinite while the blocks are too few.

    With u = n (mean - mu) for each block, S their sum and V the sum of their squares, the evidence against mu is
    sqrt(c / (K + c)) (V / (V - S^2 / (K + c)))^(K/2) for K blocks and a prior worth c of them (Lai 1976, "On confidence sequences"; Wang
    and Ramdas 2025, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance"). It pays for not knowing
    the spread, which plugging in an estimate does not: with six blocks that matters. V has `REQUEST_SPREAD` added.
    """
    mean = _mean(blocks)
    slack = _slack(len(blocks) * repeated, error)
    n = repeated * sum(each.n for each in blocks)
    squares = repeated * sum(each.n**2 for each in blocks)
    skew = slack * repeated * sum(each.n**2 * (each.mean - mean) for each in blocks)
    spread = slack * (repeated * sum((each.n * (each.mean - mean)) ** 2 for each in blocks) + n * REQUEST_SPREAD**2)
    steep = n**2 - slack * squares
    if steep <= 0:
        return -math.inf, math.inf
    root = math.sqrt(skew**2 + steep * spread)
    return mean + (-skew - root) / steep, mean + (-skew + root) / steep


def _slack(blocks: float, error: float) -> float:
    """S^2 / V up to which a mean is not excluded, from K blocks: (K + c) (1 - T^-1) with T = ((K + c) / (c error^2))^(1/K)."""
    total = blocks + PRIOR_BLOCKS
    return total * -math.expm1(-(math.log(total / PRIOR_BLOCKS) - 2 * math.log(error)) / blocks)


def _joined(blocks: Sequence[Block], length: int) -> list[Block]:
    """Neighbouring blocks as one; an incomplete rest at the end joins the last."""
    if length == 1:
        return list(blocks)
    starts = range(0, len(blocks) - length + 1, length)
    ends = [*starts[1:], len(blocks)]
    groups = [blocks[start:end] for start, end in zip(starts, ends, strict=True)]
    return [Block(n=sum(each.n for each in group), mean=_mean(group)) for group in groups]


def _mean(blocks: Sequence[Block]) -> float:
    return math.fsum(each.n * each.mean for each in blocks) / sum(each.n for each in blocks)


def _more_seconds(candidate: Sequence[Block], stable: Sequence[Block], margins: _Margins) -> str:
    if _mean(candidate) - _mean(stable) >= math.log1p(margins.exclude):
        return _NEVER

    def enough(tenths: int) -> bool:
        return _ratio_bounds(candidate, stable, margins, tenths / 10)[1] < 1 + margins.exclude

    more = math.ceil((_first(enough, 11) / 10 - 1) * len(candidate))
    return f"about {more} more seconds with traffic like this would exclude {1 + margins.exclude:.2f} times as long"


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)


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


def _tango_interval(wins: int, losses: int, n: int, z: float) -> tuple[float, float]:
    net = (losses - wins) / n
    lower = -_bisect(lambda loss: _tango(losses, wins, n, loss) > -z, -net, 1)  # the same with the two sides exchanged
    return lower, _bisect(lambda loss: _tango(wins, losses, n, loss) > -z, net, 1)


def _more_rows_for_share(share: float, n: int, limit: float, error: float) -> str:
    if share <= limit:
        return _NEVER
    gap, z = share - limit, NormalDist().inv_cdf(1 - error)
    needed = z**2 * limit * (1 - limit) / gap**2 + 2 / gap  # the normal approximation, and the steps of whole rows
    return f"about {max(math.ceil(needed) - n, 1)} more golden rows at this accuracy would settle it"


def _more_rows_for_pairs(wins: int, losses: int, n: int, margin: float, z: float) -> str:
    if (losses - wins) / n >= margin:
        return _NEVER
    needed = _first(lambda total: _tango(wins * total / n, losses * total / n, total, margin) <= -z, n + 1)
    return f"about {needed - n} more golden rows like these would settle it"


def _more_queries(over: int, n: int, quantile: float, error: float) -> str:
    if over / n >= 1 - quantile:
        return _NEVER
    needed = _first(lambda total: _at_most(math.ceil(over * total / n), total, 1 - quantile) <= error, n + 1)
    return f"about {needed - n} more queries like these would settle it"


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
