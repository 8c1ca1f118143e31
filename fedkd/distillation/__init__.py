"""Objectives (losses), operations on soft labels, divergences between clients, calibration."""
