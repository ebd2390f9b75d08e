"""The text of a report: settings, findings and numbers in words."""
