"""Turns the registered model into a bundle; the only task that loads a foreign model, in a sandbox of its own."""

from __future__ import annotations

from operators.task import TaskOperator


class Export(TaskOperator):
    noun = "export"
    environment = "export"
