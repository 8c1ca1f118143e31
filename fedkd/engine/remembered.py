"""What is not worked out again: training on private labels, and how exposed secrets are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fedkd import training
from fedkd.data import cache
from fedkd.data.federated import FederatedData
from fedkd.digests import described, digest, fingerprint, source
from fedkd.experiment import Experiment
from fedkd.lab import exposure, measure
from fedkd.work import Samples

LEARNT = "learnt: loss, sample rate, steps"


class Remembered:
    """Trainings and exposures, on disk with ``engine.remember``; of students of ``data``."""

    def __init__(self, experiment: Experiment, data: FederatedData, device: torch.device) -> None:
        self.experiment, self.data, self.device = experiment, data, device
        self._exposures: dict[int, Tensor] = {}  # of the student measured last

    def fit(
        self,
        student: nn.Sequential,
        samples: Samples,
        what: object,
        train: Callable[[], cache.Arrays],
    ) -> np.ndarray:
        """Have ``train`` change ``student``, or make it what that has made of it before."""
        experiment = self.experiment
        depends_on = (
            *(digest(student), described(student)),
            *(experiment.seed, what, repr(experiment.training)),
            *(fingerprint(samples.inputs), fingerprint(samples.labels)),
            *(not experiment.data.augment, str(self.device), experiment.engine.threads),
            *(torch.__version__, source(training)),
        )

        def make() -> cache.Arrays:
            learnt = train()
            state = {name: value.cpu().numpy() for name, value in student.state_dict().items()}
            return learnt | state

        arrays = cache.remembered("fits", depends_on, make)
        with torch.no_grad():
            for name, tensor in student.state_dict().items():
                tensor.copy_(torch.from_numpy(arrays[name]))
        return arrays[LEARNT]

    def exposures(self, student: nn.Sequential) -> Tensor:
        """How exposed every planted secret is by ``student``: ``(S,)``, in bits."""
        state, table = digest(student), self.experiment.canary

        def make() -> cache.Arrays:
            return {"bits": measure.by_student(student, self.data, table).numpy()}

        if state not in self._exposures:
            if self.experiment.engine.remember and self.data.canaries is not None:
                canaries, how = self.data.canaries, source(exposure)
                secrets = canaries.to_json(), fingerprint(canaries.images), repr(table)
                known = (state, described(student), *secrets, how)
                found = cache.remembered("exposures", known, make)
            else:
                found = make()
            self._exposures = {state: torch.from_numpy(found["bits"])}
        return self._exposures[state]
