"""DP-SGD (Abadi et al. 2016, arXiv 1607.00133, algorithm 1) for one piece of training, by Opacus.

A step draws each of K private samples with probability q, clips the gradient g_i of every one that
was drawn, and adds noise to their sum::

    g = (sum_i g_i min(1, C / |g_i|) + N(0, (sigma C)^2 I)) / (q K)

with C = ``max_grad_norm`` and sigma = ``noise_multiplier``; a gradient that is not finite counts as
0. K is public: what is hidden is whether a sample is there or counts as 0. The loop is that of
:mod:`fedkd.training`; here is what Opacus adds to it. Terms that draw from elsewhere, and those of
the parameters alone, see no private sample: their gradients are added to g as they are.

What is private is the student, and all that is made of it without another look at the samples, as
soft labels on the transfer set are. Representations of private samples and means over their classes
are no such thing: they are releases of their own. Losses and accuracies are measured by the
simulator; no epsilon covers them, and a method that acts on one has that in the ledger.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import repeat

import torch
from torch import Tensor, nn

from fedkd.distillation.objectives import couples, made, name_of, traits
from fedkd.errors import FedkdError
from fedkd.random import SystemNoise, noise_generator
from fedkd.sections import StudentTable
from fedkd.training_tables import PrivateTraining
from fedkd.work import CrossEntropy, Fit, Penalty, Soft, Source, Term, origin

PRIVATE = ("private", "own", "validation")
"""Sources that are a client's own."""


def is_private(on: Source | None) -> bool:
    """Whether a source is a client's own."""
    return origin(on) in PRIVATE


def sees_private(step: Fit) -> bool:
    """Whether a step, or a term of it, draws from what is a client's own."""
    terms = [term for peer in step.peers for term in peer.terms]
    of_terms = [term.on for term in terms if not isinstance(term, Penalty)]
    return any(is_private(on) for on in (step.on, *of_terms))


def steps_a_pass(count: int, size: int) -> int:
    """Steps of a pass over ``count`` samples: each draws ``size`` of them at most on average."""
    return -(-count // size)


def check_norm(student: StudentTable, table: PrivateTraining) -> None:
    """Refuse batch normalisation where there is noise.

    Raises
    ------
    FedkdError
        One line naming ``student.norm``.
    """
    if table.noise_multiplier and student.norm == "batch":
        raise FedkdError(
            f"student.norm = 'batch' is not allowed with training.dp.noise_multiplier = "
            f"{table.noise_multiplier:g}: its statistics mix samples; allowed: 'none', 'group'"
        )


class DPSGD:
    """What DP-SGD adds to one fit, and then what accounting needs to know of it.

    Parameters
    ----------
    table
        Noise and clipping.
    on
        Source of the fit's own samples.
    seed, purpose
        Key of the noise, and of who is drawn.
    secure
        Draw both by the operating system's generator instead.

    Attributes
    ----------
    sample_rate : float
        The chance q of a sample to be drawn in a step; 0 before the fit.
    steps : int
        Noisy steps that were taken.
    together : int
        Students that learn from the same batches, each under its own DP-SGD. Their gradients of a
        sample are bounded by C each, and by sqrt(together) C as a whole: with noise of this many
        times sigma C on each, a step of them all is one step of what accounting knows.
    """

    def __init__(
        self,
        table: PrivateTraining,
        on: Source,
        seed: int,
        *purpose: str | int,
        secure: bool = False,
    ) -> None:
        self.table, self.own = table, is_private(on)
        self.sample_rate, self.steps, self.together = 0.0, 0, 1
        self._seed, self._purpose = seed, ("dp", *purpose)
        self._system = SystemNoise() if secure else None
        self._unchecked = True

    @property
    def _noise_multiplier(self) -> float:
        return self.table.noise_multiplier * math.sqrt(self.together)

    def covers(self, term: Term) -> bool:
        """Whether a term sees private samples.

        Raises
        ------
        FedkdError
            It does, and in a way that has no gradient for each sample; or a head is trained
            beside the student for it.
        """
        if isinstance(term, Soft) and "auxiliary" in traits(made(term.objective)).needs:
            self._refuse(f"objective = {name_of(term.objective)!r}, by its auxiliary head")
        if isinstance(term, Penalty) or not (self.own if term.on is None else is_private(term.on)):
            return False
        if isinstance(term, Soft) and term.reach:
            self._refuse("a Soft term with reach on private samples")
        if isinstance(term, Soft) and term.adaptive:
            self._refuse("an adaptive Soft term on private samples, each weighed by all of a batch")
        if isinstance(term, Soft) and couples(made(term.objective)):
            self._refuse(
                f"objective = {name_of(term.objective)!r} on private samples, which couples them"
            )
        if isinstance(term, Soft | CrossEntropy) and term.through is not None:
            self._refuse("a term through another head on private samples")
        if isinstance(term, CrossEntropy) and term.prior is not None:
            self._refuse("a prior, by which each private label moves the gradients of all samples")
        if self.own and term.on is not None:
            self._refuse("a term that draws private samples beside those of its step")
        return True

    def batches(self, count: int, size: int) -> tuple[int, Iterator[Tensor]]:
        """Steps a pass, one in expectation, over ``count`` samples; and batches ``(B,)`` of them.

        Every sample is in a batch with probability ``1 / steps``, whoever else is: a batch has
        ``count / steps`` samples, at most ``size``, on average, and may be empty.
        """
        from opacus.utils.uniform_sampler import UniformWithReplacementSampler

        steps = steps_a_pass(count, size)
        self.sample_rate, self._expected = 1 / steps, count / steps
        if self._system is not None:
            return steps, map(self._drawn, repeat(count))
        sampler = UniformWithReplacementSampler(
            num_samples=count,
            sample_rate=self.sample_rate,
            generator=noise_generator(self._seed, *self._purpose, "who"),
            steps=1,
        )
        drawn = (indices for _ in repeat(None) for indices in sampler)
        return steps, (torch.tensor(indices, dtype=torch.int64) for indices in drawn)

    def _drawn(self, count: int) -> Tensor:
        """Who of ``count`` samples is in a batch, by the operating system's generator."""
        assert self._system is not None
        return torch.from_numpy(self._system.random(count) < self.sample_rate).nonzero()[:, 0]

    def attach(
        self, student: nn.Sequential, optimiser: torch.optim.Optimizer
    ) -> torch.optim.Optimizer:
        """The optimiser that clips and adds noise, with ``student`` made to give it what it needs.

        Raises
        ------
        FedkdError
            The student has a layer that mixes samples.
        """
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer

        self._parameters = [p for p in student.parameters() if p.requires_grad]
        _make_fit(student)
        try:
            self._recorder = GradSampleModule(student, loss_reduction="mean", strict=True)
        except NotImplementedError:
            self._refuse("a layer with buffers, as batch normalisation is,")
        self._recorder.disable_hooks()
        device = str(self._parameters[0].device)
        private = DPOptimizer(
            optimiser,
            noise_multiplier=0.0 if self._system else self._noise_multiplier,
            max_grad_norm=self.table.max_grad_norm,
            expected_batch_size=self._expected,
            generator=noise_generator(self._seed, *self._purpose, "noise", device=device),
        )
        private.attach_step_hook(self._complete)
        return private

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep what per-sample gradients are made of: around the private batch's way forward."""
        self._recorder.enable_hooks()
        yield
        self._recorder.disable_hooks()

    @contextmanager
    def per_sample(self, count: int) -> Iterator[None]:
        """Make per-sample gradients: around the way back from ``count`` samples' loss.

        Gradients that are there already, of terms without private samples, are put aside.
        """
        self._public = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        with self.recording(), quietly():
            yield
        for parameter in self._parameters:
            if count == 0:
                nobody = parameter.new_zeros((0, *parameter.shape))
                parameter.grad_sample = nobody  # type: ignore[attr-defined]
            elif not _adds_up(parameter, count, summed=self._unchecked):
                self._refuse("a layer that Opacus has no right per-sample gradients of")
        if count:
            self._drop_what_is_not_finite()
        self._unchecked = self._unchecked and count == 0
        self.steps += 1

    def share(self, count: int) -> float:
        """``count`` as a share of the samples that a batch has on average."""
        return count / self._expected

    def finish(self, student: nn.Sequential, learned: Mapping[str, Tensor]) -> None:
        """Give ``student`` the parameters that its copy has learned, and drop all gradients."""
        self._recorder.to_standard_module()
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if name in learned:
                    parameter.copy_(learned[name])

    def _drop_what_is_not_finite(self) -> None:
        """Make the gradient of a sample 0 where it has no norm to clip: it must move nothing else.

        A student that one sample could make NaN, or its client leave, would tell of the sample.
        """
        each: list[Tensor] = [p.grad_sample for p in self._parameters]  # type: ignore[attr-defined]
        finite = torch.stack([g.flatten(1).isfinite().all(1) for g in each]).all(0)
        if not bool(finite.all()):
            for gradients in each:
                gradients[~finite] = 0

    def _complete(self, optimiser: torch.optim.Optimizer) -> None:
        """Add noise that is not Opacus' own, and the gradients of terms without private samples."""
        if self._system is not None:
            deviation = self._noise_multiplier * self.table.max_grad_norm / self._expected
            for parameter in self._parameters:
                drawn = deviation * self._system.standard_normal(tuple(parameter.shape))
                assert parameter.grad is not None
                parameter.grad += torch.from_numpy(drawn).to(parameter)
        for parameter, public in zip(self._parameters, self._public, strict=True):
            if public is not None and parameter.grad is not None:
                parameter.grad += public

    def _refuse(self, what: str) -> None:
        raise FedkdError(
            f"training.dp.noise_multiplier = {self.table.noise_multiplier:g} does not work with "
            f"{what}; allowed: 0"
        )


def copied(student: nn.Sequential) -> nn.Sequential:
    """A copy to train in its place, in the memory format of the gradients that Opacus gives.

    Raises
    ------
    FedkdError
        The student cannot be copied.
    """
    try:
        return copy.deepcopy(student).to(memory_format=torch.contiguous_format)
    except Exception as error:
        raise FedkdError(
            "training.dp.noise_multiplier is allowed with students that copy.deepcopy can copy; "
            f"this one cannot be: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Around any way back through hooked layers: torch says that data want no gradients."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        yield


def _adds_up(parameter: nn.Parameter, count: int, summed: bool) -> bool:
    """Whether there is a gradient a sample, and whether their mean is the gradient of the mean."""
    each: Tensor = parameter.grad_sample  # type: ignore[attr-defined]
    if len(each) != count or parameter.grad is None:
        return False
    if not summed or not bool(each.isfinite().all() and parameter.grad.isfinite().all()):
        return True
    return bool((each.mean(0) - parameter.grad).abs().max() <= 1e-3 * each.abs().max())


def _make_fit(student: nn.Sequential) -> None:
    """Have layers that Opacus cannot hook compute the same in a way that it can."""
    for module in list(student.modules()):
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            # Opacus reads a convolution's inputs as if they were contiguous, whether or not.
            module.register_forward_pre_hook(_contiguous)
        if isinstance(module, nn.ReLU):
            module.inplace = False
        for name, child in module.named_children():
            if isinstance(child, nn.LSTM | nn.GRU) and child.weight_hh_l0.requires_grad:
                setattr(module, name, _unrolled(child))


def _unrolled(rnn: nn.LSTM | nn.GRU) -> nn.Module:
    """Opacus' layer for ``rnn``, with its very parameters."""
    from opacus.layers import DPGRU, DPLSTM

    kind = DPLSTM if isinstance(rnn, nn.LSTM) else DPGRU
    with torch.device("meta"):
        found = kind(
            rnn.input_size,
            rnn.hidden_size,
            num_layers=rnn.num_layers,
            bias=rnn.bias,
            batch_first=rnn.batch_first,
            dropout=rnn.dropout,
            bidirectional=rnn.bidirectional,
            proj_size=rnn.proj_size,
        )
    for name, parameter in rnn.named_parameters():
        what, side, cell = name.split("_", 2)  # weight_ih_l0_reverse
        setattr(found.get_submodule(f"{cell}.{side}"), what, parameter)
    return found.train(rnn.training)


def _contiguous(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Not .contiguous(): one channel is both formats at once, and would stay as it is.
    return tuple(each.clone(memory_format=torch.contiguous_format) for each in inputs)
