"""What every test needs before Airflow is imported."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the fixtures' own modules; the checkout's root stays off the path

import airflow_home  # noqa: E402, F401
