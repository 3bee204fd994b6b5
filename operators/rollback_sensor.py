"""Watches one step: renews the lease, judges, and takes the candidate back the moment that its verdict is `failed`."""

from __future__ import annotations

from operators.rollout import StepOperator


class RollbackSensor(StepOperator):
    noun = "rollback_sensor"
    deferrable = True
