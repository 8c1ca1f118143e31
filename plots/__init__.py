"""Figures from run folders: one file a figure, each with ``draw(...) -> Figure``."""
