"""The executors of cells: this process, worker processes, Ray or torchrun; queue and progress."""
