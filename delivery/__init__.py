"""Container-side code that acts: model to bundle, registry entries, servers, traffic. Knows nothing of Airflow."""
