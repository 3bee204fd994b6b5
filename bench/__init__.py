"""Measurements (`make bench`): figures named in the README, written to docs/benchmarks.json."""
