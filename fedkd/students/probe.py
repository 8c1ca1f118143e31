"""What a student does besides what its layers say: found out by a few passes on made-up samples.

Own layers may draw random numbers, look at other samples of the batch, write to buffers or keep
something outside of the ``state_dict``. Nothing of this can be read off a type.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.errors import summary_of
from fedkd.random import global_draws
from fedkd.students.build import named_blocks

SAMPLES = 4
RELATIVE = 1e-4
"""Of the largest value: differences up to this are rounding."""
_TORCHS_OWN = frozenset(vars(nn.Module()))


class Traits(NamedTuple):
    """What some passes of a student show, in training and when it answers.

    ``draws``: it draws random numbers. ``mixes``: what it gives for a sample depends on the other
    samples of the batch. ``writes``: it writes to buffers. ``varies``: it gives something
    else for the same samples a second time, though it draws the same.
    """

    draws: bool = False
    mixes: bool = False
    writes: bool = False
    varies: bool = False


class Probe(NamedTuple):
    """The traits of a student in training and when it ``answers``, and what was found besides.

    ``keeps`` names what it changes and does not have in its ``state_dict``, and ``counts`` is
    whether that may change a number, which activations put aside to be looked at do not.
    ``replaces`` names a parameter that is another one after a pass; ``error`` says how a pass
    failed. Names and errors are empty where there are none.
    """

    training: Traits = Traits()
    answers: Traits = Traits()
    keeps: str = ""
    counts: bool = False
    replaces: str = ""
    error: str = ""


def made_up(shape: tuple[int, ...], classes: int, tokens: bool, device: torch.device) -> Tensor:
    """Inputs ``(4, ...)`` for a probe: the same ones in every process."""
    draw = torch.Generator().manual_seed(0)
    if tokens:
        return torch.randint(1, classes, (SAMPLES, *shape), generator=draw).to(device)
    return torch.randn(SAMPLES, *shape, generator=draw, dtype=torch.float32).to(device)


def probe(student: nn.Sequential, inputs: Tensor) -> Probe:
    """Try a student out on ``inputs`` ``(4, ...)``; parameters and buffers are as before.

    What it keeps outside of its ``state_dict`` is not: build another where ``keeps`` is not empty.
    """
    parameters = {name: id(parameter) for name, parameter in student.named_parameters()}
    attributes = _attributes(student)
    with as_before(student) as held:
        try:
            with torch.no_grad():
                training, written = _traits(student.train(), inputs, held)
                answers, more = _traits(student.eval(), inputs, held)
        except Exception as error:
            return Probe(error=summary_of(error))
        now = {name: id(parameter) for name, parameter in student.named_parameters()}
        replaced = [name for name in parameters if now.get(name) != parameters[name]]
        state = student.state_dict()
        kept = [name for name in sorted(written | more) if name not in state or name not in held]
        changed = _changed(attributes, _attributes(student))
        unsteady = any(traits.mixes or traits.varies for traits in (training, answers))
        counts = bool(kept) or unsteady
        counts = counts or any(not isinstance(value, _Held) for value in changed.values())
        kept += changed
    counts = counts and bool(kept)
    return Probe(training, answers, "".join(kept[:1]), counts, "".join(replaced[:1]))


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Compute in float32 as it is, without mixed precision or, on a GPU, TF32."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                yield
        finally:
            torch.set_float32_matmul_precision(before)


@contextmanager
def as_before(student: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Give a student its tensors and modes back; yields a copy of parameters and buffers."""
    modes = [(module, module.training) for module in student.modules()]
    held = {name: tensor.detach().clone() for name, tensor in _tensors(student).items()}
    try:
        yield held
    finally:
        _give_back(student, held)
        for module, training in modes:
            module.training = training


def outputs(student: nn.Sequential, inputs: Tensor) -> list[Tensor]:
    """What each block gives, the logits last."""
    given = []
    for _, block in named_blocks(student):
        # A block may write into what it is given.
        inputs = block(inputs.clone() if isinstance(inputs, Tensor) else inputs)
        given.append(inputs)
    return given


def close(one: Tensor, other: Tensor, relative: float = RELATIVE) -> bool:
    """Whether two tensors are the same up to rounding; what is not finite must be the same."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    finite = one[one.isfinite()]
    largest = float(finite.abs().max()) if len(finite) else 0.0
    return torch.allclose(one, other, rtol=0, atol=relative * largest, equal_nan=True)


def _traits(
    student: nn.Sequential, inputs: Tensor, held: Mapping[str, Tensor]
) -> tuple[Traits, set[str]]:
    """The traits in the student's mode, and the names of the tensors that it has written to."""
    with global_draws(1, inputs.device):
        before = _generators(inputs.device)
        given = outputs(student, inputs)
        draws = before != _generators(inputs.device)
    now = _tensors(student)
    written = {name for name in now if name not in held or not torch.equal(held[name], now[name])}
    # The first two samples, with others beside them, and then with another number of others.
    half = SAMPLES // 2
    others = inputs.flip(1) if not inputs.is_floating_point() else -3 * inputs
    batches = [torch.cat([inputs[:half], others[half:]])]
    if not draws:  # what is drawn for a sample depends on the shape of the batch
        batches.append(torch.cat([inputs[:half], torch.zeros_like(inputs[:1]), others[half:]]))
    mixes = varies = False
    for batch in (inputs, *batches):
        _give_back(student, held)
        with global_draws(1, inputs.device):
            again = outputs(student, batch)
        for one, other in zip(given, again, strict=True):
            rows = isinstance(one, Tensor) and (len(one), len(other)) == (SAMPLES, len(batch))
            if rows and not close(one[:half], other[:half]):
                varies |= batch is inputs
                mixes = True
    _give_back(student, held)
    return Traits(draws, mixes and not varies, bool(written), varies), written


def _tensors(student: nn.Module) -> dict[str, Tensor]:
    return {**dict(student.named_parameters()), **dict(student.named_buffers())}


def _give_back(student: nn.Module, held: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in _tensors(student).items():
            if name in held:
                tensor.copy_(held[name])


def _generators(device: torch.device) -> tuple[object, ...]:
    """The states of the generators that :func:`fedkd.random.global_draws` keys."""
    found: list[object] = [torch.default_generator.get_state().numpy().tobytes()]
    if device.type == "cuda":
        found.append(torch.cuda.get_rng_state(device).numpy().tobytes())
    _, words, position, *_ = cast(tuple[Any, ...], np.random.get_state())
    return *found, words.tobytes(), position, random.getstate()


def layers(student: nn.Module) -> list[tuple[str, str, str]]:
    """Name and class of every module, with the settings of torch's own."""
    return [
        (
            name,
            type(module).__qualname__,
            module.extra_repr() if type(module).__module__.startswith("torch.") else "",
        )
        for name, module in student.named_modules()
    ]


def unkept(student: nn.Module) -> dict[str, Tensor]:
    """Buffers that the ``state_dict`` does not have."""
    state = student.state_dict()
    return {name: buffer for name, buffer in student.named_buffers() if name not in state}


class _Held(NamedTuple):
    """A tensor, as it is now."""

    identity: int
    version: int


def _attributes(student: nn.Module) -> dict[str, Any]:
    """What modules hold besides parameters, buffers and modules: containers as they are now."""
    found = {}
    for name, module in student.named_modules():
        for key, value in vars(module).items():
            if key not in _TORCHS_OWN:
                found[f"{name}.{key}"] = _now(value)
    return found


def _now(value: Any) -> Any:
    """Something that is no longer the same when ``value`` has changed."""
    if isinstance(value, nn.Parameter):  # whose values are seen elsewhere
        return id(value)
    if isinstance(value, Tensor):
        return _Held(id(value), value._version)
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, Mapping):
        return [(_now(key), _now(held)) for key, held in value.items()]
    if isinstance(value, list | tuple):
        return [_now(held) for held in value]
    if isinstance(value, bool | int | float | str | bytes | None):
        return value
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, set | frozenset) or hasattr(type(value), "__len__"):
        with suppress(Exception):  # a compiled module has a length that is none
            return id(value), len(value)
    return id(value)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What is new or other than before, as it is after."""
    missing = object()
    return {name: now for name, now in after.items() if before.get(name, missing) != now}
