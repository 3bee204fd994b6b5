"""The gates: container-side code that decides. Knows nothing of Airflow, registries or engines."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime reads it when it is imported: its wheels report to their maker otherwise
