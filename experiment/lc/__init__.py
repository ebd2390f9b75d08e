"""The L-C optimizer: alternating learning and compression steps."""
