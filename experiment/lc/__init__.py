"""The L-C optimizer: learning and compression in turn."""
