"""The Airflow side: runs tasks somewhere and obeys their verdicts. Knows Airflow and the contract, nothing of models."""
