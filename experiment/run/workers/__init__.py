"""Who computes the cells: this process, worker processes, Ray or torchrun; queue and progress."""
