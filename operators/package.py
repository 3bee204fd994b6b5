"""Makes the bundle ready to be served, and writes its address and semantic version into the registry."""

from __future__ import annotations

from operators.task import TaskOperator


class Package(TaskOperator):
    noun = "package"
    uses_engine = True
