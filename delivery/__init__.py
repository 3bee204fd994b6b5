"""Container-side code that acts: model to bundle, registry entries, servers, traffic. Knows nothing of Airflow."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime reads it when it is imported: its wheels report to their maker otherwise
