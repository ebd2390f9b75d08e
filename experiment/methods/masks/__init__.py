"""Methods that set single weights or blocks of weights to zero."""
