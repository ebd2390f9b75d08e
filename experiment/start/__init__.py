"""`--new`: asks what is wanted, finds out the rest, and writes a parameter file with a small twin to try first."""
