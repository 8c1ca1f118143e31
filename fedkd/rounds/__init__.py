"""Rounds: Flower's two phases, in which clients are asked, answered by, and measured."""
