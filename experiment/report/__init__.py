"""Results into tables and pictures: reads an experiment's folder, never trains. Importing this is cheap."""

from __future__ import annotations

from experiment.report.plots.compare_variants import plot_variants
from experiment.report.plots.cost import plot_cost
from experiment.report.plots.retrain_sweep import is_retrain_sweep, plot_retrain_sweep, retrain_sweep
from experiment.report.plots.tradeoff import plot_tradeoff
from experiment.report.prune_potential import deltas_for, latex_table, markdown_table, prune_potential, smallest_within
from experiment.report.results_folder import Source, default_results, find_experiments, read_source
from experiment.report.write import Report, write_report

__all__ = [
    "Report",
    "Source",
    "default_results",
    "deltas_for",
    "find_experiments",
    "is_retrain_sweep",
    "latex_table",
    "markdown_table",
    "plot_cost",
    "plot_retrain_sweep",
    "plot_tradeoff",
    "plot_variants",
    "prune_potential",
    "read_source",
    "retrain_sweep",
    "smallest_within",
    "write_report",
]
