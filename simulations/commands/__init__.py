"""The commands of the command line: a file a command, gathered by ``fedkd.simulations.cli``."""
