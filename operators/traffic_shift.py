"""Gives the candidate one step's share of the traffic, and verifies that the gateway obeys."""

from __future__ import annotations

from operators.rollout import StepOperator


class TrafficShift(StepOperator):
    noun = "traffic_shift"
