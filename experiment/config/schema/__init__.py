"""The keys of a parameter file: types, ranges, defaults and descriptions."""
