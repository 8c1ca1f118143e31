"""What people run: the command line and the experiments that ship with it."""
