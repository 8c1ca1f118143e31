"""How arrays travel: quantised to some bits an entry, or by the rows that have changed.

An encoded array is a dictionary of named arrays, as parameters are, so that it goes the way of all
arrays and its bytes are those of what it holds. The receiver decodes it before anybody looks at it.

==============================  ================================================================
``Quantised(b)``                ``codes``, uint8: K x C numbers of b bits behind one another
``Quantised(b, "range")``       beside them ``ends`` ``(K, 2)`` float32: least and largest of a row
``Delta()``                     ``changed``, uint8: a bit a row; ``values`` ``(k, C)``, those rows
``Delta(Quantised(...))``       ``changed``, and these rows quantised
``LowRank(energy)``             of each array of parameters: itself under its name, or, of what has
                                changed, ``.left`` ``(m, r)`` and ``.right`` ``(r, n)``
==============================  ================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedkd.compression import Delta, Encoding, LowRank, Quantised
from fedkd.distillation.objectives import made, traits
from fedkd.errors import FedkdError
from fedkd.fields import check_fields, source_name
from fedkd.mixtures import Mixture, travelling
from fedkd.work import (
    Fit,
    Load,
    Parameters,
    Predict,
    Share,
    Soft,
    Source,
    Step,
    origin,
)

BYTE = 8
Forms = Mapping[str, tuple[torch.Size, torch.dtype]]
"""Shapes and dtypes of parameters, by name."""


class Undecodable(ValueError):
    """What came is not what the encoding gives."""


def encoded(values: Tensor, encoding: Encoding, known: Tensor | None = None) -> Parameters:
    """The arrays that travel in the place of ``values`` ``(K, C)``.

    Parameters
    ----------
    known : Tensor of shape (K, C), optional
        What the receiver holds of these rows; NaN where it holds none.
    """
    values = values.detach().cpu().float()
    if isinstance(encoding, Quantised):
        return _quantised(values, encoding)
    received = as_received(values, encoding)
    changed = torch.ones(len(values), dtype=torch.bool)
    if known is not None:
        changed = (received != known).any(1)
    rows = values[changed]
    inner = {"values": rows} if encoding.rows is None else _quantised(rows, encoding.rows)
    return {"changed": packed(changed.to(torch.uint8), 1), **inner}


def decoded(
    arrays: Parameters, encoding: Encoding, shape: tuple[int, int], known: Tensor | None = None
) -> Tensor:
    """The values ``(K, C)`` that the receiver sees, ``shape``, float32.

    Raises
    ------
    Undecodable
        The arrays are not what :func:`encoded` gives of values of this shape.
    """
    if isinstance(encoding, Quantised):
        return _levels(_named(arrays, _names(encoding)), encoding, shape)
    inner = {"values"} if encoding.rows is None else _names(encoding.rows)
    given = _named(arrays, {"changed", *inner})
    count, columns = shape
    _like(given["changed"], "changed", (-(-count // BYTE),), torch.uint8)
    changed = unpacked(given["changed"], 1, count).bool()
    if known is None and not bool(changed.all()):
        raise Undecodable("rows are missing, and nothing is held that they are the same as")
    part = int(changed.sum()), columns
    if encoding.rows is None:
        _like(given["values"], "values", part, torch.float32)
        rows = given["values"]
    else:
        rows = _levels(given, encoding.rows, part)
    whole = torch.empty(shape) if known is None else known.clone()
    whole[changed] = rows
    return whole


def as_received(values: Tensor, encoding: Encoding | None) -> Tensor:
    """Values ``(K, C)`` as the receiver sees them once they have travelled."""
    how = encoding.rows if isinstance(encoding, Delta) else encoding
    if encoding is None:
        return values
    values = values.detach().cpu().float()
    if how is None:
        return values
    return _levels(_quantised(values, how), how, (values.shape[0], values.shape[1]))


# --- what may be encoded --------------------------------------------------------------------


def check_encodings(step: Step, travels: bool) -> None:
    """Refuse encodings of a step, its other fields checked already, that are not for it.

    Raises
    ------
    FedkdError
        One line naming the step or term and what is allowed; also where nothing of the step
        ``travels``.
    """
    if isinstance(step, Share) and step.encoding is not None:
        check_fields(step.encoding)
        if not travels:
            raise FedkdError("Share: encoding is not allowed here: nothing of the step travels")
    if isinstance(step, Predict) and step.encoding is not None:
        _check("Predict", step.encoding, step.on, step.per, step.output == "logits", travels)
    if not isinstance(step, Fit):
        return
    if any(isinstance(t, Soft) and t.encoding for peer in step.together for t in peer.terms):
        raise FedkdError(
            "Soft: encoding is not allowed for a student of together; allowed: in the step's terms"
        )
    for term in step.terms:
        if isinstance(term, Soft) and term.encoding is not None:
            if isinstance(term.targets, str):
                raise FedkdError("Soft: encoding is not allowed with the name of a student")
            if isinstance(term.targets, Mixture) and len(travelling(term.targets)) != 1:
                raise FedkdError(
                    "Soft: encoding is not allowed with a Mixture of "
                    f"{len(travelling(term.targets))} arrays; allowed: one"
                )
            on = step.on if term.on is None else term.on
            takes = traits(made(term.objective)).targets
            _check("Soft", term.encoding, on, term.per, takes == "logits", travels)


def _check(
    name: str, encoding: Encoding, on: Source, per: str, logits: bool, travels: bool
) -> None:
    check_fields(encoding)
    if not travels:
        raise FedkdError(f"{name}: encoding is not allowed here: nothing of the step travels")
    if origin(on) != "transfer" or per != "sample":
        raise FedkdError(
            f"{name}: encoding is not allowed {'per class' if per == 'class' else 'on'} "
            f"{source_name(on)}; allowed: a row a sample, on 'transfer' or some rows of it"
        )
    how = encoding.rows if isinstance(encoding, Delta) else encoding
    if how is None:
        return
    check_fields(how)
    if logits and how.grid == "simplex":
        raise FedkdError(
            f"{name}: Quantised: grid = 'simplex' is not allowed with logits, which do not sum to "
            "1; allowed: 'range'"
        )


def check_deltas(steps: Sequence[Step]) -> None:
    """Refuse two deltas of one name that travel the same way in one assignment.

    Raises
    ------
    FedkdError
        One line naming it: they would be to each other.
    """
    sent = [step.encoding for step in steps if isinstance(step, Predict)]
    terms = [term for step in steps if isinstance(step, Fit) for term in step.terms]
    for way in (sent, [term.encoding for term in terms if isinstance(term, Soft)]):
        names = [encoding.name for encoding in way if isinstance(encoding, Delta)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise FedkdError(
                f"two deltas of one name, {min(twice)!r}, travel the same way in one phase; give "
                "each a name of its own"
            )


# --- levels ---------------------------------------------------------------------------------


def _names(how: Quantised) -> set[str]:
    return {"codes"} if how.grid == "simplex" else {"codes", "ends"}


def _quantised(values: Tensor, how: Quantised) -> Parameters:
    top = 2**how.bits - 1
    # A row that begins with NaN is none: all of its codes are 0, which no probabilities have.
    there = ~values[:, :1].isnan()
    exact = values.double()
    if how.grid == "simplex":
        codes = on_simplex(exact.where(there, 0.0), top) * there
        return {"codes": packed(codes.to(torch.uint8).flatten(), how.bits)}
    ends = torch.stack([values.amin(1), values.amax(1)], 1)
    low, width = ends[:, :1].double(), (ends[:, 1:].double() - ends[:, :1].double())
    share = ((exact - low) / width.where(width > 0, 1.0)).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
    codes = (share * top).round().to(torch.uint8)
    return {"codes": packed(codes.flatten(), how.bits), "ends": ends}


def on_simplex(probabilities: Tensor, top: int) -> Tensor:
    """Whole numbers ``(K, C)`` that sum to ``top``, nearest in L1 to ``top`` times a row.

    Rounded down, then one more for those with the largest remainders, of equal ones the first: CFD,
    Sattler, Marban, Rischke & Samek 2021.
    """
    scaled = probabilities.double() * top
    floor = scaled.floor()
    order = (scaled - floor).argsort(stable=True, dim=1, descending=True)
    missing = (top - floor.sum(1, keepdim=True)).clamp_min(0)
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1]).expand_as(order)
    )
    return floor + (ranks < missing)


def _levels(arrays: Parameters, how: Quantised, shape: tuple[int, int]) -> Tensor:
    (count, columns), top = shape, 2**how.bits - 1
    length = -(-count * columns * how.bits // BYTE)
    _like(arrays["codes"], "codes", (length,), torch.uint8)
    codes = unpacked(arrays["codes"], how.bits, count * columns).view(count, columns).double()
    if how.grid == "simplex":
        values = (codes / top).float()
        return values.masked_fill(~codes.bool().any(1, keepdim=True), torch.nan)
    _like(arrays["ends"], "ends", (count, 2), torch.float32)
    low, high = arrays["ends"].double().split(1, 1)
    return (low + (high - low) * (codes / top)).float()


def packed(codes: Tensor, bits: int) -> Tensor:
    """Numbers ``(n,)`` uint8 below ``2**bits``, as ``ceil(n bits / 8)`` bytes."""
    ones = (codes[:, None] >> torch.arange(bits, dtype=torch.uint8)) & 1
    ones = torch.nn.functional.pad(ones.flatten(), (0, -ones.numel() % BYTE)).view(-1, BYTE)
    return (ones << torch.arange(BYTE, dtype=torch.uint8)).sum(1).to(torch.uint8)


def unpacked(packed: Tensor, bits: int, count: int) -> Tensor:
    """The ``count`` numbers that :func:`packed` has packed, ``(count,)`` uint8."""
    ones = (packed[:, None] >> torch.arange(BYTE, dtype=torch.uint8)) & 1
    ones = ones.flatten()[: count * bits].view(count, bits)
    return (ones << torch.arange(bits, dtype=torch.uint8)).sum(1).to(torch.uint8)


# --- parameters -----------------------------------------------------------------------------


def loaded(steps: Sequence[Step], share: Share) -> Parameters:
    """What the server has sent of the student in ``steps`` before ``share`` gives it out."""
    found: Parameters = {}
    for step in steps:
        if step is share:
            break
        if (
            isinstance(step, Load)
            and step.student == share.student
            and isinstance(step.parameters, dict)
            and not step.part
        ):
            found = {**found, **step.parameters}
    return found


def factorised(parameters: Parameters, how: LowRank, known: Parameters) -> Parameters:
    """The arrays that travel in the place of ``parameters``, to whom has sent ``known``."""
    arrays = {}
    for name, value in parameters.items():
        pair = None
        matrix = value.is_floating_point() and value.dim() > 1 and value.numel()
        if matrix and how.energy < 1:
            change = value.double() - known[name].double() if name in known else value.double()
            pair = _thin(change.flatten(1), how.energy)
        if pair is None or sum(each.numel() for each in pair) >= value.numel():
            arrays[name] = value
        else:
            arrays[f"{name}.left"], arrays[f"{name}.right"] = (one.to(value.dtype) for one in pair)
    return arrays


def _thin(matrix: Tensor, energy: float) -> tuple[Tensor, Tensor] | None:
    """Two matrices ``(m, r)`` and ``(r, n)`` whose product is nearest to ``matrix``; r >= 1."""
    if not bool(matrix.isfinite().all()):
        return None
    wide = matrix.shape[0] <= matrix.shape[1]
    # Of the smaller side alone: a tenth of the time of a decomposition of the matrix itself.
    squares, vectors = torch.linalg.eigh(matrix @ matrix.mT if wide else matrix.mT @ matrix)
    held = squares.flip(0).clamp_min(0).cumsum(0)
    rank = min(int((held < energy * held[-1]).sum()) + 1, len(squares))
    kept = vectors.flip(1)[:, :rank]
    return (kept, kept.mT @ matrix) if wide else (matrix @ kept, kept.mT)


def multiplied(arrays: object, wanted: Forms, known: Parameters) -> Parameters:
    """The parameters that the receiver sees, of the ``wanted`` names, shapes and dtypes.

    Raises
    ------
    Undecodable
        The arrays are not what :func:`factorised` gives of such parameters.
    """
    names = arrays.keys() if isinstance(arrays, dict) else set()
    whole = {name for name in wanted if name in names}
    pairs = {f"{name}.{side}" for name in wanted.keys() - whole for side in ("left", "right")}
    given, found = _named(arrays, whole | pairs), {}
    for name, (shape, dtype) in wanted.items():
        if name in whole:
            found[name] = given[name]
            continue
        left, right = given[f"{name}.left"], given[f"{name}.right"]
        if len(shape) < 2 or left.dim() != 2:
            raise Undecodable(f"{name}.left is {tuple(left.shape)}, and {name} {tuple(shape)}")
        rank, columns = left.shape[1], shape.numel() // shape[0]
        _like(left, f"{name}.left", (shape[0], rank), dtype)
        _like(right, f"{name}.right", (rank, columns), dtype)
        change = (left.double() @ right.double()).view(shape)
        found[name] = (change + known[name].double() if name in known else change).to(dtype)
    return found


# --- what comes -----------------------------------------------------------------------------


def _named(arrays: object, names: set[str]) -> Parameters:
    if not isinstance(arrays, dict) or arrays.keys() != names:
        there = ", ".join(sorted(map(str, arrays))) if isinstance(arrays, dict) else "one array"
        raise Undecodable(f"{', '.join(sorted(names))} are to come, and {there or 'nothing'} came")
    return arrays


def _like(array: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(array.shape) != shape or array.dtype != dtype:
        raise Undecodable(
            f"{name} is {tuple(array.shape)} of {array.dtype}, and is to be {shape} of {dtype}"
        )
