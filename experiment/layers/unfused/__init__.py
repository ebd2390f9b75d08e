"""Equivalents, made of plain layers, of modules that use their matrices without calling a layer: one file a family."""
