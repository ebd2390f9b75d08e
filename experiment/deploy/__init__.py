"""Finished networks in the form in which they run."""
