"""Training: the loop, evaluation, checkpoints, several processes."""
