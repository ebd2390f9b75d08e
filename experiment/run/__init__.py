"""Running experiments: the grid of cells, what one cell does, who computes it, and the files on disk."""
