"""What exchanged knowledge leaks, how it is protected, and what is guaranteed."""
