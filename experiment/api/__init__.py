"""The Python interface, a file a purpose; its names are those of `experiment`."""
