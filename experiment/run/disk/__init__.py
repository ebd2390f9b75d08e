"""The files of a results folder: cells, networks, tables, and whether they are intact."""
