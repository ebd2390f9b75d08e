"""The parts of compressed networks: plans, masks, factors and channels."""
