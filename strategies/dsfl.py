"""DS-FL: Itahara, Nishio, Koda, Morikura & Yamamoto, 2020 (arXiv 2008.06180).

Entropy-reduction aggregation (ERA): the mean soft label is sharpened before clients learn from it.
The paper also trains a server model on the same target; it does not act on the clients and is left
out here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from fedkd.distillation.targets import sharpen
from fedkd.privacy.candidates import possible
from fedkd.strategies.base import DistillOptions, Replies
from fedkd.strategies.uniform import Uniform
from fedkd.work import Soft, Step


class DSFL(Uniform):
    """Averages probabilities and sharpens the mean (entropy reduction; Itahara et al. 2020)."""

    class Options(DistillOptions):
        """Keys of ``[strategy]``."""

        era_temperature: float = Field(0.1, gt=0)
        """Temperature of the sharpening softmax; the paper's default."""

    def fuse(self, round: int, replies: Replies) -> None:
        """``G = softmax(mean_n F_n / T)``, (M, C)."""
        super().fuse(round, replies)
        among = self.public.among
        if among is not None:
            # What is no class must not get a share in sharpening.
            self.fused = self.fused.masked_fill(~possible(among, self.task.classes), -torch.inf)
        self.fused = sharpen(self.fused, self.options.era_temperature)

    def receive(self, round: int, client: int) -> Sequence[Step]:
        """Cross-entropy to the sharpened soft labels."""
        return [self.distil(Soft(self.fused, objective="cross_entropy"))]
