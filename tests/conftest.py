"""What every test needs before Airflow is imported."""

import os
import sys
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the fixtures' own modules; the checkout's root stays off the path
sys.path.insert(0, str(HERE.parent / "plugins"))  # as Airflow loads them: top-level modules by their stem

import airflow_home  # noqa: E402, F401
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("unhurried", deadline=None)  # a machine that is busy with other things fails no rule
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes more on two cores is for FULL=1."""
    if os.environ.get("FULL") != "1":
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="takes minutes more: FULL=1"))
