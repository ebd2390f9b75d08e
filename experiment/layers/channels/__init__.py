"""Channels: which go together, and how they are cut out of a network."""
