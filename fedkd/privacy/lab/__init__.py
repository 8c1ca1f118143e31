"""Attacks on an experiment: what its clients send tells about their data."""
