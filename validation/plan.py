"""`penstock plan churn.toml --rps 200`: what each step of a policy can see at this traffic, before anybody trusts it.

For each step: how many requests the candidate will have had at its end, how long a good version needs to show the step's margins, and the
least rise of errors and of latency that is found with 80 % chance. Figures follow from the judges' own thresholds with normal
approximations, and hold for independent requests; latency is taken as log-normal with the given spread. Problems end with status 1.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from validation.error_rates import Tally, lower_rate, upper_rate
from validation.latencies import ALONE, QUANTILES, SLOWER, TUNED_ROWS
from validation.policy import BadPolicy, Margins, Policy, Rollout, Step, read_policy
from validation.rollout_judge import chance

EXIT_PROBLEMS, EXIT_USAGE = 1, 64
POWER = 0.8
STABLE_ERRORS, LOG_SIGMA = 0.0005, 0.5
"""What stable's requests are taken to be like, unless said otherwise: 0.05 % errors, log-normal latency of a usual web service."""

MOST_RATE, MOST_RATIO = 0.5, 10.0
"""A step that sees only more than this sees nothing."""

MOST_REQUESTS = 10**8


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Requests per second of the model in all, and what stable's are like."""

    rps: float
    stable_errors: float = STABLE_ERRORS
    log_sigma: float = LOG_SIGMA


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """`requests` of the candidate until this step's deadline, all steps before included. What is not seen at all is infinite."""

    step: Step
    margins: Margins
    requests: int
    needed: int
    seconds: float
    seen_error_rate: float
    seen_mean_ratio: float
    seen_p99_ratio: float

    @property
    def problems(self) -> Iterator[str]:
        place = f"the step at {self.step.permille} per mille"
        if self.seconds > self.step.max_seconds:
            yield (
                f"{place} needs {self.seconds:.0f} s to exclude {self.margins.error_rate:.3%} errors for a good version and has "
                f"max_seconds = {self.step.max_seconds:g}: raise it, raise the margin, or give the step a larger share"
            )
        if not self.step.blind and self.seen_error_rate > MOST_RATE and self.seen_mean_ratio > MOST_RATIO:
            yield f"{place} sees nothing in {self.requests} requests: make it longer or larger, or say blind = true if it is meant so"


def plan(policy: Policy, traffic: Traffic) -> tuple[StepPlan, ...]:
    """Each step with what it can see; evidence goes on from step to step."""
    plans, had, stable_had = [], 0.0, 0.0
    for step in policy.rollout.steps:
        share = step.permille / 1000
        margins = policy.rollout.margins(step)
        n, stable_n = had + share * traffic.rps * step.max_seconds, stable_had + (1 - share) * traffic.rps * step.max_seconds
        needed = _first(lambda count, margins=margins: _excludes(count, policy.rollout, margins, traffic))  # type: ignore[misc]
        seconds = max(step.min_seconds, (needed - had) / (share * traffic.rps))
        plans.append(
            StepPlan(
                step=step,
                margins=margins,
                requests=int(n),
                needed=needed,
                seconds=seconds,
                seen_error_rate=seen_error_rate(int(n), policy.rollout),
                seen_mean_ratio=seen_mean_ratio(n, stable_n, policy.rollout, traffic.log_sigma),
                seen_p99_ratio=_least(lambda ratio: sees_p99(n, stable_n, ratio, policy.rollout, traffic.log_sigma)),  # noqa: B023
            )
        )
        had, stable_had = had + share * traffic.rps * seconds, stable_had + (1 - share) * traffic.rps * seconds
    return tuple(plans)


def sees_errors(n: int, rate: float, rollout: Rollout) -> bool:
    """Whether so many requests show with `POWER` that this rate is above the limit."""
    failures = _low(n * rate)
    tally = Tally(failures=failures, n=n, bursts=failures, counted=n)
    return n > 0 and failures > 0 and lower_rate(tally, chance(rollout, "errors")) >= rollout.error_limit


def seen_error_rate(n: int, rollout: Rollout) -> float:
    """Least rate that is found with `POWER`; infinite when none is."""
    low, high = rollout.error_limit, 1.0
    if not sees_errors(n, high, rollout):
        return math.inf
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if sees_errors(n, middle, rollout) else (middle, high)
    return high


def seen_mean_ratio(n: float, stable_n: float, rollout: Rollout, log_sigma: float) -> float:
    """Least ratio of geometric means that is found with `POWER`; 1.2 is 20 % slower."""
    rows = n * stable_n / (n + stable_n) if stable_n > 0 else n / 2
    if rows < 1:
        return math.inf
    reach = rows + TUNED_ROWS
    boundary = math.sqrt(reach * (math.log(reach / TUNED_ROWS) + 2 * math.log(1 / (2 * (1 - ALONE) * chance(rollout, "latency_mean")))))
    return (1 + rollout.latency_worse) * math.exp(min(log_sigma * (boundary / rows + _z() / math.sqrt(rows)), 700))


def sees_p99(n: float, stable_n: float, ratio: float, rollout: Rollout, log_sigma: float) -> bool:
    """Whether evidence grows past its threshold at this ratio of 99th percentiles, less what bad luck costs."""
    if n < 1 or stable_n < 1:
        return False
    share = 1 - QUANTILES["p99"]
    above = 1 - NormalDist().cdf(NormalDist().inv_cdf(QUANTILES["p99"]) - math.log(ratio / (1 + rollout.latency_worse)) / log_sigma)
    seen = _low(n * above) / n
    needed = math.log(1 / ((1 - ALONE) * chance(rollout, "latency_p99")))
    return any(math.log(weight) + _gain(n, stable_n, times * share, share, seen) >= needed for times, weight in SLOWER)


def _gain(n: float, stable_n: float, here: float, there: float, seen: float) -> float:
    both = (n * here + stable_n * there) / (n + stable_n)
    candidate = seen * math.log(here / both) + (1 - seen) * math.log((1 - here) / (1 - both))
    return n * candidate + stable_n * (there * math.log(there / both) + (1 - there) * math.log((1 - there) / (1 - both)))


def _excludes(n: int, rollout: Rollout, margins: Margins, traffic: Traffic) -> bool:
    """Whether a version like stable shows the step's error margin with so many requests, with `POWER`."""
    failures = math.ceil(n * traffic.stable_errors + _z() * math.sqrt(n * traffic.stable_errors)) if traffic.stable_errors else 0
    tally = Tally(failures=failures, n=n, bursts=failures, counted=n)
    return failures < n and upper_rate(tally, rollout.miss) < margins.error_rate


def _low(mean: float) -> int:
    """A count that is reached with `POWER`."""
    return max(0, math.floor(mean - _z() * math.sqrt(mean)))


def _z() -> float:
    return NormalDist().inv_cdf(POWER)


def _first(holds: Callable[[int], bool]) -> int:
    high = 1
    while not holds(high) and high < MOST_REQUESTS:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _least(holds: Callable[[float], bool]) -> float:
    """Least ratio above 1 where it holds; infinite when none up to 100 does."""
    low, high = 1.0, 100.0
    if not holds(high):
        return math.inf
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _report(policy: Policy, traffic: Traffic, plans: Sequence[StepPlan]) -> Iterator[str]:
    rollout = policy.rollout
    like = f"stable fails {traffic.stable_errors:.3%}, latency log-normal, log-sigma {traffic.log_sigma:g}"
    yield f"{policy.model} at {traffic.rps:g} requests/s; {like}"
    yield _line("share", "requests", "good passes after", "must exclude", "sees errors from", "mean from", "p99 from")
    for each in plans:
        exclude = f"{each.margins.error_rate:.2%}, +{each.margins.latency_worse:.0%}"
        errors_from = f"{each.seen_error_rate:.2%}" if math.isfinite(each.seen_error_rate) else "nothing"
        ratios = _rise(each.seen_mean_ratio), _rise(each.seen_p99_ratio)
        yield _line(f"{each.step.permille / 10:.1f}%", f"{each.requests:,}", f"{each.seconds:.0f} s", exclude, errors_from, *ratios)
    errors = _first(lambda n: sees_errors(n, 0.005, rollout))
    yield f"errors of 0.5 % are found after {errors:,} candidate requests: {_minutes(errors, policy, traffic)}"
    tail = _first(lambda n: sees_p99(n, 9 * n, 1.2 * (1 + rollout.latency_worse), rollout, traffic.log_sigma))
    yield f"a p99 20 % beyond what is allowed, beside nine times the traffic on stable, after {tail:,}: {_minutes(tail, policy, traffic)}"


def _line(*words: str) -> str:
    return " ".join(f"{word:>{width}}" for word, width in zip(words, (7, 9, 17, 16, 16, 9, 9), strict=True))


def _rise(ratio: float) -> str:
    return f"+{ratio - 1:.0%}" if ratio < MOST_RATIO else "nothing"


def _minutes(requests: int, policy: Policy, traffic: Traffic) -> str:
    shares = [step.permille / 1000 for step in policy.rollout.steps]
    return ", ".join(f"{requests / (share * traffic.rps) / 60:,.1f} min at {share:.1%}" for share in shares)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args([each for each in (sys.argv[1:] if arguments is None else arguments) if each != "plan"])
    try:
        policy = read_policy(options.policy)
    except BadPolicy as error:
        print(f"penstock: {error}", file=sys.stderr)
        return EXIT_USAGE
    traffic = Traffic(rps=options.rps, stable_errors=options.stable_errors, log_sigma=options.log_sigma)
    plans = plan(policy, traffic)
    print("\n".join(_report(policy, traffic, plans)))
    problems = [problem for each in plans for problem in each.problems]
    for problem in problems:
        print(f"problem: {problem}")
    return EXIT_PROBLEMS if problems else 0


def _positive(word: str) -> float:
    value = float(word)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{word} must be above 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="penstock plan", description="Says what each step of a policy can see. Status 1 with problems.")
    parser.add_argument("policy", type=Path, help="the model's policy, <model>.toml")
    parser.add_argument("--rps", type=_positive, required=True, help="requests per second of the model, all versions together")
    parser.add_argument("--stable-errors", type=float, default=STABLE_ERRORS, help="stable's error rate (0.0005)")
    parser.add_argument("--log-sigma", type=_positive, default=LOG_SIGMA, help="spread of log latency (0.5)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
