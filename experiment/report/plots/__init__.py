"""The plots of a report, one kind per file."""
