"""Starts a Triton for the version and makes it known to the gateway, with no traffic yet."""

from __future__ import annotations

from operators.rollout import RolloutOperator


class StartCandidate(RolloutOperator):
    noun = "start_candidate"
    reaches = ("core", "serving")
    uses_engine = True
    needs_stable = False
    strategies = ("canary", "blue_green", "shadow")
