"""Where clients' work runs: the worker that performs it, and the engines that host workers."""
