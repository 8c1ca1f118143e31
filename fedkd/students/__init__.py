"""The model zoo: a student is an ordered sequence of named blocks, so any block boundary is a cut.

``student[:k]`` is the base up to a cut and ``student[k:]`` the rest; parameters are called
``"block.…"``; the last block is the head, all others are the body.
"""

from fedkd.students.build import (
    blocks,
    build,
    count_parameters,
    cut_index,
    float32_by_default,
    multiply_adds,
    named_blocks,
    part_names,
    selected,
    takes_tokens,
    torch_only,
)

__all__ = [
    "blocks",
    "build",
    "count_parameters",
    "cut_index",
    "float32_by_default",
    "multiply_adds",
    "named_blocks",
    "part_names",
    "selected",
    "takes_tokens",
    "torch_only",
]
