"""Hooks: code that is called when a run, a cell or an epoch starts and ends. No package is imported here."""

HOOKS = {"mlflow": "experiment.hooks.mlflow_runs:MLflowRuns"}
"""Name in parameter files -> import path."""
