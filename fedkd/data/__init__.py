"""Data sets, partitions over clients, transfer and test sets: resident in memory, loaded once."""
