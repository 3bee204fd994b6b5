"""Gives Airflow a home of the test run's own before anything imports it, so that no test reads or writes the user's."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="penstock-test-airflow-"))
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
os.environ.setdefault("AIRFLOW__CORE__DAGS_FOLDER", str(ROOT / "dags"))
os.environ.setdefault("AIRFLOW_CONN_MLFLOW", '{"conn_type": "http", "host": "127.0.0.1", "port": 15000}')
os.environ.setdefault("AIRFLOW_CONN_DIRECTOR", '{"conn_type": "http", "host": "127.0.0.1", "port": 18100, "password": "a-token"}')
