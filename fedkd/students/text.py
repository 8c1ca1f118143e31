"""Students of text: functions of the number of tokens T of a row and the vocabulary.

They take token ids ``(B, T)`` and give logits ``(B, T, V)`` of the token that follows each. Weights
are initialised as PyTorch's layers do it, but for the embeddings of ``gpt``. There is no dropout.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fedkd.errors import FedkdError
from fedkd.students.build import takes_tokens
from fedkd.students.zoo import Norm

UNITS = 128
HEADS = 4
EMBEDDING_STD = 0.02
"""Standard deviation of ``gpt``'s embeddings at first (Radford et al. 2018, section 4.1)."""

State = Tensor | tuple[Tensor, Tensor]


class Recurrent(nn.Module):
    """A recurrent layer over ``(B, t, E)``, that starts every row from a state of zeros."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn

    def step(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Outputs ``(B, t, H)``, and the state after them.

        Parameters
        ----------
        inputs
            ``(B, t, E)``, of any length t.
        state
            What an earlier call gave; None for zeros.
        """
        output, state = self.rnn(inputs, state)
        return output, state

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``(B, t, H)``."""
        return self.step(inputs)[0]


class Positioned(nn.Module):
    """Embeddings ``(B, t, d)`` of tokens ``(B, t)`` and of their positions."""

    def __init__(self, tokens: int, positions: int, units: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, units)
        self.positions = nn.Embedding(positions, units)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=EMBEDDING_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, t, d)``."""
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return self.tokens(tokens) + self.positions(places)


class Layer(nn.Module):
    """A transformer layer: causal self-attention, then an MLP, each after a layer norm."""

    def __init__(self, units: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(units), nn.LayerNorm(units)
        self.attention = nn.Linear(units, 3 * units)
        self.project = nn.Linear(units, units)
        self.mlp = nn.Sequential(
            nn.Linear(units, 4 * units), nn.GELU(), nn.Linear(4 * units, units)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """``(B, t, d)`` to ``(B, t, d)``."""
        attended = self.project(self._attend(self.attention(self.norm1(inputs))))
        inputs = inputs + attended
        return inputs + self.mlp(self.norm2(inputs))

    def _attend(self, joined: Tensor) -> Tensor:
        split = joined.unflatten(-1, (3, self.heads, -1)).transpose(1, 3)  # (B, h, 3, t, d / h)
        query, key, value = split.unbind(2)
        attended = scaled_dot_product_attention(query, key, value, is_causal=True)
        return attended.transpose(1, 2).flatten(2)


@takes_tokens
def lstm(shape: tuple[int, ...], classes: int, norm: Norm, width: float) -> nn.Sequential:
    """Text: embeddings of 128, one LSTM layer of 128 units (Hochreiter & Schmidhuber 1997)."""
    return _recurrent("lstm", nn.LSTM, classes, norm, width)


@takes_tokens
def gru(shape: tuple[int, ...], classes: int, norm: Norm, width: float) -> nn.Sequential:
    """Text: embeddings of 128, one GRU layer of 128 units (Cho et al. 2014)."""
    return _recurrent("gru", nn.GRU, classes, norm, width)


@takes_tokens
def gpt(shape: tuple[int, ...], classes: int, norm: Norm, width: float) -> nn.Sequential:
    """Text: a transformer of 2 pre-norm layers, 4 heads and 128 units (Radford et al. 2019)."""
    _no_norm("gpt", norm)
    units = HEADS * max(1, round(UNITS / HEADS * width))
    layers = {f"layer{index}": Layer(units, HEADS) for index in (1, 2)}
    head = nn.Sequential(nn.LayerNorm(units), nn.Linear(units, classes))
    embed = Positioned(classes, shape[0], units)
    return nn.Sequential(OrderedDict(embed=embed, **layers, head=head))


def _recurrent(
    name: str, layer: type[nn.LSTM] | type[nn.GRU], classes: int, norm: Norm, width: float
) -> nn.Sequential:
    _no_norm(name, norm)
    units = max(1, round(UNITS * width))
    return nn.Sequential(
        OrderedDict(
            [
                ("embed", nn.Embedding(classes, units)),
                (f"{name}1", Recurrent(layer(units, units, batch_first=True))),
                ("head", nn.Linear(units, classes)),
            ]
        )
    )


def _no_norm(name: str, norm: Norm) -> None:
    if norm != "none":
        raise FedkdError(
            f"student.norm = {norm!r} does not work with {name}, whose normalisation is its own; "
            "allowed: 'none'"
        )
