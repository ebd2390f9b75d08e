"""What one cell does: load or train the reference network, compress, retrain, test, store."""
