"""What a network costs: parameters, multiply-adds, bytes, milliseconds and memory, measured on the deployed network."""

from experiment.measure.counting import Count, LayerCount, count, example_input, recount
from experiment.measure.latency import Latency, measure_latency
from experiment.measure.memory import Memory, measure_memory, peak_memory
from experiment.measure.storage import Bytes, SparseBytes, count_bytes, count_sparse_bytes

__all__ = [
    "Bytes", "Count", "Latency", "LayerCount", "Memory", "SparseBytes", "count", "count_bytes", "count_sparse_bytes",
    "example_input", "measure_latency", "measure_memory", "peak_memory", "recount",
]  # fmt: skip
