"""Canaries: secrets planted in clients' training samples, to measure what leaks of them.

In text a canary is a line, ``my id is 2 8 1 6 5 0``: a template known to all and a few symbols
drawn uniformly (Carlini et al. 2019). Among images it is a sequence of labels (a few images unlike
any other, known to all, and what their holder says they are); or it is an image: a template known
to all, a few blocks of it black or white at random, and a label known to all.
"""
