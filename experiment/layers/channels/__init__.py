"""Groups of dependent channels, and how they are removed from a network."""
