"""Exposure: how far a secret stands out among all that could have stood in its place.

A secret of ``L`` symbols is drawn uniformly from the space R of all ``A**L`` sequences. Whoever
looks for it scores every sequence of R; the rank of the secret is 1 plus the number of others that
score at least as well, and its exposure is ``log2 |R| - log2 rank``, in bits (Carlini, Liu,
Erlingsson, Kos & Song 2019, *The Secret Sharer*). Scores that know nothing of the secret give an
exponential law whose mean is not 0 but :data:`fedkd.exposures.NULL_MEAN`.

Here are functions over numbers. *Conditionals* are what they share: a list over the positions
``i = 0 … L-1`` of log-probabilities ``(A**i, A)``, in nats, of the next symbol after each of the
``A**i`` prefixes in lexicographic order. A sequence scores the sum of its own. They need not sum to
one over the symbols: a language model has other words as well. A second score of a sequence is the
sum of the probabilities themselves (:func:`.conditionals.probabilities`): it tells more where laws
are flat or noisy and most prefixes are not known.

That mean of the null holds where a secret is drawn independently of what scores it and ties are
rare, as with a student. Of released labels it does not hold: prefixes that the public corpus does
not have are given a uniform law, those that it has a peaked one.
"""
