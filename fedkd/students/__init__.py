"""The model zoo: a student is an ordered sequence of named blocks, so any block boundary is a cut.

``student[:k]`` is the base up to a cut and ``student[k:]`` the rest; parameters are called
``"block.…"``; the last block is the head, all others are the body.
"""

from fedkd.students.build import (
    blocks,
    build,
    count_parameters,
    cut_index,
    multiply_adds,
    part_names,
    selected,
    takes_tokens,
)

__all__ = [
    "blocks",
    "build",
    "count_parameters",
    "cut_index",
    "multiply_adds",
    "part_names",
    "selected",
    "takes_tokens",
]
