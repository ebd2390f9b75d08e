"""Which cells an experiment has, and the keys under which their results are kept. Without torch."""
