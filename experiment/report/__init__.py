"""Tables, plots and reports from results folders; never trains. Importing this loads neither pandas nor matplotlib."""

from experiment.report.catalogue import write_catalogue
from experiment.report.comparisons import compare
from experiment.report.console import compare_experiments, pareto_table
from experiment.report.find_experiments import default_results, find_experiments
from experiment.report.label_styles import LabelStyles
from experiment.report.plots.compare_variants import plot_variants
from experiment.report.plots.cost import plot_cost
from experiment.report.plots.retrain_sweep import is_retrain_sweep, plot_retrain_sweep, retrain_sweep
from experiment.report.plots.tradeoff import plot_tradeoff
from experiment.report.prune_potential import deltas_for, prune_potential, smallest_within
from experiment.report.results_folder import Source, read_cells, read_source
from experiment.report.words.potential_tables import latex_table, markdown_table
from experiment.report.write import Report, write_report

__all__ = [
    "LabelStyles", "Report", "Source", "compare", "compare_experiments", "default_results", "deltas_for",
    "find_experiments", "is_retrain_sweep", "latex_table", "markdown_table", "pareto_table", "plot_cost",
    "plot_retrain_sweep", "plot_tradeoff", "plot_variants", "prune_potential", "read_cells", "read_source",
    "retrain_sweep", "smallest_within", "write_catalogue", "write_report",
]  # fmt: skip
