"""What every test needs before Airflow is imported."""

import os
import sys
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the fixtures' own modules; the checkout's root stays off the path
sys.path.insert(0, str(HERE.parent / "plugins"))  # as Airflow loads them: top-level modules by their stem

import airflow_home  # noqa: E402, F401
from hypothesis import settings  # noqa: E402

settings.register_profile("unhurried", deadline=None)  # a machine that is busy with other things fails no rule
settings.load_profile("unhurried")
