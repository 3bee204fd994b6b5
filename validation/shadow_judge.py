"""What a mirror must show before a candidate has users: enough requests, few of them failed, and answers like stable's.

`delivery.shadow` asks at every look, `delivery.replay` once more afterwards. Pure: counts and pairs in, findings out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from validation.contract import Finding, Outcome
from validation.judges import errors_below
from validation.paired import Pair, paired_findings
from validation.policy import Rollout, Shadow
from validation.rollout_judge import SHADOW_PART


def judge_shadow(requests: int, failures: int, pairs: Sequence[Pair], shadow: Shadow, rollout: Rollout) -> tuple[Finding, ...]:
    """`requests` and `failures`: what the candidate's endpoints counted since the mirror began; below 0 the gateway was restarted."""
    if min(requests, failures) < 0:
        return (Finding(name="mirrored_errors", outcome=Outcome.INCONCLUSIVE, why="the gateway's counters fell: it was restarted"),)
    alike = paired_findings(pairs, shadow, false_alarm=chances(rollout)["paired"], miss=rollout.miss)
    return (_enough(requests, shadow.min_requests), _errors(requests, failures, shadow, rollout), *alike)


def chances(rollout: Rollout) -> Mapping[str, float]:
    """The mirror's part of the rollout's chance of a false alarm, by what is judged."""
    return dict.fromkeys(("mirrored_errors", "paired"), rollout.false_alarm * SHADOW_PART / 2)


def _enough(requests: int, least: int) -> Finding:
    return Finding(
        name="mirrored_requests",
        outcome=Outcome.PASSED if requests >= least else Outcome.INCONCLUSIVE,
        why=f"{requests} mirrored requests of at least {least}",
        observed=float(requests),
        limit=float(least),
        advice=None if requests >= least else "more traffic, or a longer max_seconds in [shadow]",
    )


def _errors(requests: int, failures: int, shadow: Shadow, rollout: Rollout) -> Finding:
    return errors_below(
        name="mirrored_errors",
        failures=min(failures, requests),
        n=requests,
        limit=rollout.error_limit,
        exclude=shadow.exclude_error_rate,
        false_alarm=chances(rollout)["mirrored_errors"],
        miss=rollout.miss,
    )
