"""The architectures: functions of the input's shape, the classes, the normalisation and a width.

Each takes ``shape`` (of one input, without the batch), ``classes``, ``norm`` and ``width``, a
factor on every hidden width, and returns named blocks. Weights are initialised as PyTorch's layers
do it. There is no dropout.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import gcd, prod
from typing import Literal

from torch import Tensor, nn

from fedkd.errors import FedkdError

Norm = Literal["none", "group", "batch"]


def mlp(shape: tuple[int, ...], classes: int, norm: Norm, width: float) -> nn.Sequential:
    """Fully connected, two hidden layers of 200 (McMahan et al. 2017); takes any input."""
    hidden = _scaled(200, width)
    return _named(
        fc1=_dense(prod(shape), hidden, norm),
        fc2=_dense(hidden, hidden, norm),
        head=nn.Linear(hidden, classes),
    )


def cnn2(shape: tuple[int, ...], classes: int, norm: Norm, width: float) -> nn.Sequential:
    """Two 3x3 convolution blocks (32, 64 channels) and FC 512; images from 4x4 pixels."""
    return _cnn("cnn2", shape, classes, norm, width, (32, 64))


def cnn3(shape: tuple[int, ...], classes: int, norm: Norm, width: float) -> nn.Sequential:
    """Three 3x3 convolution blocks (32, 64, 64 channels) and FC 512; images from 8x8 pixels."""
    return _cnn("cnn3", shape, classes, norm, width, (32, 64, 64))


def resnet8(shape: tuple[int, ...], classes: int, norm: Norm, width: float) -> nn.Sequential:
    """CIFAR-style residual network (He et al. 2016, section 4.2), one block a stage: 16, 32, 64."""
    return _resnet("resnet8", shape, classes, norm, width, (16, 32, 64), depth=1)


def resnet18(shape: tuple[int, ...], classes: int, norm: Norm, width: float) -> nn.Sequential:
    """ResNet-18 (He et al. 2016) with a stem for small images: 3x3, stride 1, no max pool."""
    return _resnet("resnet18", shape, classes, norm, width, (64, 128, 256, 512), depth=2)


def _cnn(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    norm: Norm,
    width: float,
    channels: tuple[int, ...],
) -> nn.Sequential:
    before, height, breadth = _image(name, shape, halvings=len(channels))
    hidden = _scaled(512, width)
    layers: dict[str, nn.Module] = {}
    for index, base in enumerate(channels, start=1):
        after = _scaled(base, width)
        # ReLU after the pool: the same numbers and gradients as before it, on a quarter of them.
        layers[f"conv{index}"] = nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=norm == "none"),
            *_normalisation(norm, after, nn.BatchNorm2d),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        before, height, breadth = after, height // 2, breadth // 2
    layers["fc1"] = _dense(before * height * breadth, hidden, norm)
    return _named(**layers, head=nn.Linear(hidden, classes))


def _resnet(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    norm: Norm,
    width: float,
    channels: tuple[int, ...],
    depth: int,
) -> nn.Sequential:
    """``depth`` basic blocks a stage; every stage but the first halves height and width."""
    if norm == "none":
        raise FedkdError(
            f"student.norm = 'none' does not work with {name}, which needs normalisation; "
            "allowed: 'group', 'batch'"
        )
    from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3

    class Block(BasicBlock):
        """torchvision's, but for the addition in place: per-sample gradients do without."""

        def forward(self, x: Tensor) -> Tensor:
            identity = x if self.downsample is None else self.downsample(x)
            out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            return self.relu(out + identity)

    def normalisation(count: int) -> nn.Module:
        return _normalisation(norm, count, nn.BatchNorm2d)[0]

    inputs = _image(name, shape, halvings=len(channels) - 1)[0]
    before = _scaled(channels[0], width)
    stem = nn.Sequential(conv3x3(inputs, before), normalisation(before), nn.ReLU())
    layers: dict[str, nn.Module] = {"stem": stem}
    for stage, base in enumerate(channels, start=1):
        after, stage_blocks = _scaled(base, width), []
        for index in range(depth):
            stride = 2 if stage > 1 and index == 0 else 1
            shortcut = None
            if stride != 1 or before != after:
                shortcut = nn.Sequential(conv1x1(before, after, stride), normalisation(after))
            stage_blocks.append(Block(before, after, stride, shortcut, norm_layer=normalisation))
            before = after
        layers[f"layer{stage}"] = nn.Sequential(*stage_blocks)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return _named(**layers, pool=pool, head=nn.Linear(before, classes))


def _named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _scaled(base: int, width: float) -> int:
    return max(1, round(base * width))


def _dense(inputs: int, outputs: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, outputs, bias=norm == "none"),
        *_normalisation(norm, outputs, nn.BatchNorm1d),
        nn.ReLU(),
    )


def _normalisation(norm: Norm, channels: int, batch: Callable[[int], nn.Module]) -> list[nn.Module]:
    """No layer, or one; ``batch`` is the batch normalisation that fits the number of axes.

    Groups: 8, 4, 2 or 1, whatever divides the channels and leaves at least 4 in a group, as a
    group of one channel on one pixel would be normalised to zero.
    """
    groups = gcd(channels // 4, 8) if channels % 4 == 0 else 1
    if norm == "group":
        return [nn.GroupNorm(groups, channels)]
    return [batch(channels)] if norm == "batch" else []


def _image(name: str, shape: tuple[int, ...], halvings: int) -> tuple[int, int, int]:
    """Channels, height and width of an image that can be halved so many times."""
    if len(shape) != 3:
        raise FedkdError(
            f"student.models = {name!r} needs images (channels, height, width), got inputs of "
            f"shape {shape}; 'mlp' takes any shape"
        )
    channels, height, breadth = shape
    smallest = 2**halvings
    if min(height, breadth) < smallest:
        raise FedkdError(
            f"student.models = {name!r} needs images of at least {smallest}x{smallest} pixels, "
            f"got {height}x{breadth}"
        )
    return channels, height, breadth
