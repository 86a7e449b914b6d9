"""Measurements behind docs/benchmarks.md and docs/results.md; `python -m benchmarks` makes the former."""
