"""What exposure of secret images takes: every image of their template, shown to a student.

    python tests/benchmarks/secret_images.py [DATASET ...]

Digits by default, which need no download; another data set (mnist) is looked for in FEDKD_DATA.
Students are untrained, with one torch thread, whose CPU time is told. Secrets share the images, so
that their number does not count.
"""

import statistics
import sys
import time

import torch

from fedkd.data.federated import load
from fedkd.experiment import Experiment, StudentTable
from fedkd.lab.measure import by_student
from fedkd.students import build

REPEATS, LENGTHS = 3, (12, 16)
STUDENTS = (("mlp", 1.0), ("cnn2", 0.5), ("cnn2", 1.0))


def main(*datasets):
    torch.set_num_threads(1)
    print("| data | student | width | images | CPU seconds |\n|---|---|---|---|---|")
    for dataset in datasets or ("digits",):
        for length in LENGTHS:
            tables = {"data": {"dataset": dataset, "clients": 2, "samples_per_client": 50}}
            canary = {"kind": "pixels", "secrets": 5, "repeats": [1, 4, 16], "length": length}
            experiment = Experiment.from_dict(tables | {"canary": canary})
            data = load(experiment)
            for name, width in STUDENTS:
                table = StudentTable(width=width)
                student = build(name, data.task.shape, data.task.classes, table, 0)
                took = []
                for _ in range(REPEATS):
                    begin = time.process_time()
                    by_student(student, data, experiment.canary)
                    took.append(time.process_time() - begin)
                middle = statistics.median(took)
                print(f"| {dataset} | {name} | {width:g} | {2**length:,} | {middle:.2f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
