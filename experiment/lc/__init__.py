"""The L-C optimizer: learning and compressing in turn."""
