"""What exact exposure takes: 10^6 secrets by prefix trie, against reading each from its beginning.

    python tests/benchmarks/exposure.py [VOCABULARY] [STUDENT ...]

Both run in one process, in turn, on the same untrained students of E = H = 128 and with one torch
thread. The plain way is timed on a sample of the secrets and scaled up, which the table says.
"""

import statistics
import sys
import time

import torch

from fedkd.experiment import StudentTable
from fedkd.lab.exposure.conditionals import student_conditionals, student_scorer
from fedkd.lab.exposure.ranks import exact_exposure
from fedkd.students import build

REPEATS, SAMPLE, LENGTH, SYMBOLS = 3, 20_000, 6, 10


def seconds(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main(vocabulary="1400", *names):
    torch.set_num_threads(1)
    context, symbols = torch.tensor([1, 20, 21, 22]), torch.arange(3, 3 + SYMBOLS)
    draw = torch.Generator().manual_seed(0)
    secrets = torch.randint(SYMBOLS, (80, LENGTH), generator=draw)
    drawn = torch.randint(SYMBOLS, (SAMPLE, LENGTH), generator=draw)
    space = SYMBOLS**LENGTH
    print(
        f"{space:,} secrets, V = {vocabulary}; plain: {SAMPLE:,} secrets, times {space // SAMPLE}"
    )
    print("| student | trie, s | plain, s | plain / trie |\n|---|---|---|---|")
    for name in names or ("lstm", "gru", "gpt"):
        student = build(name, (32,), int(vocabulary), StudentTable(), 0, tokens=True)

        def trie(student=student):
            exact_exposure(student_conditionals(student, context, symbols, LENGTH), secrets)

        def plain(student=student):
            student_scorer(student, context, symbols)(drawn)

        pairs = [(seconds(trie), seconds(plain) * space / SAMPLE) for _ in range(REPEATS)]
        fast, slow = (statistics.median(side) for side in zip(*pairs))
        ratio = statistics.median(slow / fast for fast, slow in pairs)
        print(f"| {name} | {fast:.1f} | {slow:.0f} | {ratio:.0f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
