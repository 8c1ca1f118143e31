"""Clients a second against the number of clients in a cohort, and against one by one.

    python tests/benchmarks/cohorts.py [cpu|cuda] [batch]

Clients hold images of 28x28; each does four steps of Adam on one batch, or four forward passes, as
an assignment of its own. Both ways take turns; medians of five.
"""

import statistics
import sys

import torch

from fedkd.engine import rule, tune

COHORTS = (1, 5, 20, 100)
REPEATS = 5


def main(device="", batch="32"):
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rule.MEMORY[device] = 2**40  # a cohort is as large as asked for
    name = torch.cuda.get_device_name(device) if device != "cpu" else "1 thread"
    print(f"{device} ({name}), batch {batch}; clients a second\n")
    print(
        "| student | work | clients | one by one | cohort | ratio |\n|---|---|---:|---:|---:|---:|"
    )
    for model in ("mlp", "cnn2"):
        for what in ("fit", "forward"):
            for count in COHORTS:
                hosts = {way: tune.host(model, device, 1, way, count) for way in ("off", "on")}
                times = {way: [] for way in hosts}
                for _ in range(REPEATS + 1):
                    for way, worker in hosts.items():
                        times[way].append(tune.seconds(worker, what, int(batch)))
                alone, together = (count / statistics.median(t[1:]) for t in times.values())
                cells = [model, what, count, f"{alone:.0f}", f"{together:.0f}"]
                ratio = f"{together / alone:.2f}"
                print(f"| {' | '.join(map(str, [*cells, ratio]))} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
