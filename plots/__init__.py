"""Figures from run folders: one file a figure, each with ``draw(...) -> Figure``."""

FIGURES = {"curves": "plots.curves", "partition": "plots.partition"}
