"""The gates: container-side code that decides. Knows nothing of Airflow, registries or engines."""
