"""Students and other modules that the server trains, with the same loop as the clients."""

from __future__ import annotations

import copy
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fedkd import students
from fedkd.data.federated import Task
from fedkd.engine.devices import device
from fedkd.errors import FedkdError, about, brief
from fedkd.experiment import Experiment
from fedkd.fields import check_minimise
from fedkd.fits import check_server_fit, check_validation
from fedkd.hooks import trace
from fedkd.privacy.public import Public
from fedkd.random import generator, key
from fedkd.students.pair import table_of
from fedkd.training import (
    Auxiliary,
    BatchOfOne,
    Course,
    OwnLoss,
    Validation,
    fit,
    minimise,
    placed,
    predict,
    represent,
    span,
)
from fedkd.training.auxiliary import pooled
from fedkd.training.losses import source_of
from fedkd.training.loyalty import Comparison, Loyalty, comparison, loyalties, metrics
from fedkd.training.student import student_draws
from fedkd.training_tables import ServerTable, TrainingTable
from fedkd.work import Fit, Parameters, Samples, Term

OptimiserName = Literal["adam", "adamw", "sgd"]
PLATEAU = 1e-4
"""Share of the best loss by which a better one is less."""


class ServerStudents:
    """Students on the server, by name: a global student, heads on uploaded representations.

    Any other module may be one of them, such as a generator or prototypes that learn: it is trained
    by :meth:`minimise`. Their parameters are part of a strategy's state, so a resumed run goes on
    with them. ``warn`` is told, by what it is about, what a reader of the run's numbers must know;
    ``own`` is how the method trains where ``[server]`` says nothing.
    """

    def __init__(
        self,
        experiment: Experiment,
        public: Public | None = None,
        warn: Callable[[str, str], None] | None = None,
        own: ServerTable | None = None,
    ) -> None:
        self._experiment, self._public, self._warn = experiment, public, warn
        self._own = own or ServerTable()
        self._device = device(experiment.engine.device)
        self._students: dict[str, nn.Module] = {}
        self._saved: dict[str, Parameters] = {}
        self._fits: Counter[tuple[str, int]] = Counter()
        self._optimisers: dict[str, Parameters] = {}  # what they keep
        self._plateaus: dict[str, dict[str, float]] = {}
        self._auxiliary: dict[str, dict[str, Parameters]] = {}  # the heads beside each
        # What was given out of each since it was last changed, and how it was then.
        self._copies: dict[str, tuple[Parameters, Any]] = {}
        self.loyalties: list[dict[str, float]] = []
        """Of the fits of the round that is under way, in rounds that are measured."""

    @property
    def device(self) -> torch.device:
        """Where the modules are, and what is computed with them has to be."""
        return self._device

    def add(self, name: str, make: Callable[[], nn.Module]) -> None:
        """Have a student called ``name``, made by ``make`` unless it is there already.

        Raises
        ------
        FedkdError
            ``make`` gives no module, or one whose ``state_dict`` no checkpoint can hold.
        """
        if name in self._students:
            return
        module = make()
        with about(f"server student {name!r}"):
            _check_module(module)
            module = module.to(self._device)
            if name in self._saved:
                module.load_state_dict(self._saved.pop(name))
        self._students[name] = module

    def fit(
        self,
        name: str,
        round: int,
        samples: Samples,
        terms: Sequence[Term],
        epochs: float,
        *,
        annealed: bool = False,
        validation: Validation | None = None,
    ) -> float:
        """Train the student ``name`` on ``samples``; the mean loss of the last pass.

        How comes from ``[server]``, then from the method's ``server_training``, then from
        ``[training]``. A term with ``on="public"`` draws from the transfer set as it was before
        canaries. With ``annealed`` the rate falls to 0 along a cosine; with ``validation`` the fit
        may end early, and the student is then as it was at its best.

        Raises
        ------
        FedkdError
            There is no such student, or what is asked does not fit it, in one line.
        """
        student = self._sequence(name)
        public = Samples(torch.empty(0)) if self._public is None else self._public.samples
        asked = Fit(samples, cast(tuple[Term, ...], terms), epochs, 0, student=name)
        with about(f"server student {name!r}"):
            check_server_fit(asked, student, samples, public)
            if validation is not None:
                check_validation(validation)
                validation = replace(validation, samples=placed(validation.samples, self._device))
        training, purpose = self._begin(name, round)
        heads = self._auxiliary.setdefault(name, {})
        auxiliary = Auxiliary(key(self._experiment.seed, "auxiliary", "server", name), heads)
        compared = self._compared(asked, round, public)
        before = self._loyalty(name, compared)
        try:
            loss = fit(
                student,
                placed(samples, self._device),
                terms,
                training,
                generator(self._experiment.seed, "fit", *purpose),
                epochs=epochs,
                min_steps=0,
                sources={"public": partial(placed, public, self._device)},
                course=Course(annealed, validation),
                kept=self._kept(name, training),
                span=span(round, self._experiment.rounds),
                auxiliary=auxiliary,
            )
        except BatchOfOne as error:
            raise FedkdError(f"the server's student {name!r}: {error}") from error
        if compared:
            self.loyalties.append(metrics(before, self._loyalty(name, compared)))
        self._watch_plateau(name, loss)
        return loss

    def _compared(self, step: Fit, round: int, public: Samples) -> list[Comparison]:
        """What the loyalty of a student that learns by ``step`` is measured by."""
        table, samples = self._experiment, {None: step.on, step.on: step.on, "public": public}
        most = table.measure.loyalty if table.measured(round) and step.epochs else 0
        found = [
            comparison(term, placed(source, self._device), most)
            for term in step.terms
            if isinstance(source := samples.get(source_of(term)), Samples) and most
        ]
        return [one for one in found if one is not None]

    def _loyalty(self, name: str, compared: Sequence[Comparison]) -> list[Loyalty]:
        """The loyalties of a student as it is now, asked of a copy: nothing of it changes."""
        if not compared:
            return []
        student = copy.deepcopy(self._sequence(name))
        return loyalties(student, compared, key(self._experiment.seed, "loyalty", name))

    def minimise(
        self,
        name: str,
        round: int,
        loss: OwnLoss,
        *,
        size: int,
        epochs: float,
        lr: float | None = None,
        batch_size: int | None = None,
        optimiser: OptimiserName | None = None,
        part: tuple[str, ...] = (),
    ) -> float:
        """Train the module ``name`` by a loss of your own; the mean loss of the last pass.

        Parameters
        ----------
        loss
            ``loss(module, index, generator)`` gives the loss of a mini-batch, a scalar. ``index``
            ``(B,)`` int64 has the numbers of its rows, of whatever the loss looks up by them, on
            :attr:`device`. What the loss draws comes from ``generator``, on the CPU, and is the
            same in every run; what it makes of it goes to ``index.device``. Other students come in
            by :meth:`frozen`.
        size
            Number of rows; a pass goes through 0 to ``size - 1`` in mini-batches, in a new order.
            With ``batch_size=size`` a pass is one step.
        epochs
            Passes, fractions allowed.
        lr, batch_size, optimiser
            Of a module with settings of its own; what is not given is as in :meth:`fit`. ``lr``
            goes by no schedule; with an ``optimiser`` there is no momentum and no weight decay but
            what ``[server]`` or the method says.
        part
            Names of what the module is made of (its modules, its own parameters) that learns; empty
            means all. The rest is frozen, and in evaluation mode.

        Raises
        ------
        FedkdError
            There is no such module, an argument is not allowed, or the loss fails, is no scalar or
            has no gradient, in one line. A loss that is no number is a warning of the run.
        """
        module = self._student(name)
        with about(f"server student {name!r}"):
            check_minimise(
                loss=loss,
                size=size,
                epochs=epochs,
                lr=lr,
                batch_size=batch_size,
                optimiser=optimiser,
                part=part,
            )
            training, purpose = self._begin(
                name, round, lr=lr, batch_size=batch_size, optimiser=optimiser
            )
            draw = generator(self._experiment.seed, "minimise", *purpose)
            kept = self._kept(name, training)
            found = minimise(
                module, loss, size, training, draw, epochs=epochs, part=tuple(part), kept=kept
            )
        self._watch_plateau(name, found)
        if self._warn is not None and not math.isfinite(found):
            self._warn(
                f"the loss of the server's {name!r}",
                f"round {round}: the loss of the server's {name!r} is {found}: it has diverged",
            )
        return found

    def frozen(self, name: str, parameters: Parameters | None = None, cut: str = "") -> nn.Module:
        """A copy of a student that learns nothing, for the loss of another, or for its samples.

        It is in evaluation mode and on :attr:`device`. Gradients go through it to its inputs.

        Parameters
        ----------
        parameters
            All of its parameters and buffers, as a client sends them, in place of its own.
        cut
            The blocks above it alone, which take representations and give logits.

        Raises
        ------
        FedkdError
            There is no such student, or no such cut of it; or the parameters are not its own.
        """
        module = self._sequence(name) if cut else self._student(name)
        if parameters is not None:
            self._check_parameters(name, parameters)
        module = copy.deepcopy(module).eval().requires_grad_(False)
        if parameters is not None:
            module.load_state_dict(parameters)
        if cut:
            with about(f"server student {name!r}"):
                assert isinstance(module, nn.Sequential)
                return module[students.cut_index(module, cut) :]
        return module

    def _begin(
        self, name: str, round: int, **given: Any
    ) -> tuple[TrainingTable, tuple[str | int, ...]]:
        """How a student trains, and the purpose of what is drawn for it."""
        self._fits[name, round] += 1
        self._copies.pop(name, None)
        said = {key: value for key, value in given.items() if value is not None}
        if "lr" in said:  # which stays as it is
            said["schedule"] = "constant"
        table = self._experiment.server.over(self._own).model_copy(update=said)
        training = table.training(self._experiment.training, round, self._experiment.rounds)
        if table.schedule == "plateau" and name in self._plateaus:
            lr = training.lr * self._plateaus[name]["factor"]
            training = training.model_copy(update={"lr": lr})
        return training, ("server", name, round, self._fits[name, round])

    def _kept(self, name: str, training: TrainingTable) -> Parameters | None:
        """What the student's optimiser goes on from, if it does."""
        return self._optimisers.setdefault(name, {}) if training.keep_optimiser else None

    def _watch_plateau(self, name: str, loss: float) -> None:
        """Lower the student's rate where its loss has long been no better than the best."""
        table = self._experiment.server.over(self._own)
        if table.schedule != "plateau":
            return
        start = {"best": math.inf, "worse": 0, "factor": 1.0}
        now = self._plateaus.setdefault(name, start)
        better = loss < now["best"] - PLATEAU * abs(now["best"]) or math.isinf(now["best"])
        now["best"] = loss if better and math.isfinite(loss) else now["best"]
        now["worse"] = 0 if better else now["worse"] + 1
        patience, factor = table.patience
        if now["worse"] >= patience:
            now["worse"], now["factor"] = 0, now["factor"] * factor

    def _student(self, name: str) -> nn.Module:
        if name not in self._students:
            known = ", ".join(self._students) or "none"
            raise FedkdError(f"server student {name!r} is not known; known: {known}")
        return self._students[name]

    def _sequence(self, name: str) -> nn.Sequential:
        student = self._student(name)
        if not isinstance(student, nn.Sequential):
            raise FedkdError(
                f"server student {name!r} is a {type(student).__name__}, and terms and cuts are "
                "for a torch.nn.Sequential of named blocks; any module is trained by minimise"
            )
        return student

    def predict(self, name: str, inputs: Tensor, *further: Tensor) -> Tensor:
        """Logits ``(K, C)``; of a module that is no sequence of blocks, what it gives for inputs.

        In evaluation mode; what it draws is the same each time.
        """
        self._copies.pop(name, None)  # of a student that writes to its buffers
        seed = key(self._experiment.seed, "answer", "server", name)
        student = self._student(name)
        if isinstance(student, nn.Sequential) and not further:
            return predict(student, inputs.to(self._device), seed).clone().cpu()
        given = [each.to(self._device) for each in (inputs, *further)]
        with student_draws(student.eval(), seed, self._device), torch.no_grad():
            answer: Tensor = student(*given)
        return answer.cpu()

    def represent(self, name: str, inputs: Tensor, cut: str) -> Tensor:
        """Representations ``(K, d)`` of inputs at ``cut``: feature maps as means over their places.

        Of text, a row a token. As in :meth:`predict`.
        """
        self._copies.pop(name, None)
        seed = key(self._experiment.seed, "answer", "server", name)
        held, _ = represent(self._sequence(name), inputs.to(self._device), cut, seed)
        return pooled(held).clone().cpu()

    def load(self, name: str, parameters: Parameters) -> None:
        """Give the student these parameters and buffers, which are all that it has.

        Raises
        ------
        FedkdError
            They are not: one is missing, or of another shape.
        """
        self._check_parameters(name, parameters)
        self._copies.pop(name, None)
        with torch.no_grad():
            for each, tensor in self._student(name).state_dict().items():
                tensor.copy_(parameters[each])

    def _check_parameters(self, name: str, parameters: Parameters) -> None:
        tensors = self._student(name).state_dict()
        for each in (*tensors, *parameters):
            mine, given = tensors.get(each), parameters.get(each)
            if mine is None or given is None or mine.shape != given.shape:
                raise FedkdError(
                    f"server student {name!r}: {each} is {_shape(mine)}, and of the parameters it "
                    f"is {_shape(given)}"
                )

    def parameters(self, name: str) -> Parameters:
        """A copy of its parameters and buffers: one object as long as both stay as they are.

        So what many clients get is encoded, and kept, once.
        """
        copy, seen = self._copies.get(name, ({}, None))
        if seen is None or trace(copy) != seen:
            tensors = self._student(name).state_dict()
            copy = {key: tensor.cpu().clone() for key, tensor in tensors.items()}
            self._copies[name] = copy, trace(copy)
        return copy

    def state(self) -> dict[str, dict[str, Any]]:
        """All students' parameters, what is kept beside them and plateaus, for a checkpoint."""
        return {
            "students": self._saved | {name: self.parameters(name) for name in self._students},
            "optimisers": {name: dict(kept) for name, kept in self._optimisers.items()},
            "plateaus": {name: dict(now) for name, now in self._plateaus.items()},
            "auxiliary": {name: dict(heads) for name, heads in self._auxiliary.items() if heads},
        }

    def restore(self, state: dict[str, dict[str, Any]]) -> None:
        """Take in what :meth:`state` gave; students take it when they are added again."""
        self._students.clear()
        self._copies.clear()
        self._saved = dict(state["students"])
        self._optimisers, self._plateaus = state["optimisers"], state["plateaus"]
        self._auxiliary = state["auxiliary"]


def _check_module(module: object) -> None:
    """Refuse what is no module, or one whose state is not tensors."""
    if not isinstance(module, nn.Module):
        raise FedkdError(f"its factory gives {brief(module)}; allowed: a torch.nn.Module")
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor) or nn.parameter.is_lazy(value):
            what = brief(value) if not isinstance(value, Tensor) else "yet without a shape"
            raise FedkdError(f"{name} of its state_dict is {what}; allowed: tensors")


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"


def blocks_above(experiment: Experiment, task: Task, model: str, cut: str) -> nn.Sequential:
    """A fresh head with the shape of ``model``'s blocks above ``cut``, named as they are there."""
    seed = key(experiment.seed, "head", model, cut)
    student = students.build(
        model, task.shape, task.classes, table_of(experiment), seed, tokens=task.tokens
    )
    return student[students.cut_index(student, cut) :]


def small_head(
    experiment: Experiment, task: Task, shape: tuple[int, ...], hidden: int, name: str
) -> nn.Sequential:
    """A fresh head of one hidden layer on representations of ``shape``, whatever the student."""
    inputs = torch.Size(shape).numel()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(experiment.seed, "head", name))
        return nn.Sequential(
            OrderedDict(
                fc1=nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU()),
                head=nn.Linear(hidden, task.classes),
            )
        )
