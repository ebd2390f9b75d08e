"""Methods that remove filters, neurons or whole blocks."""
