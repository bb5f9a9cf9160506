"""How rows are cut into blocks and groups of blocks: a function of their number alone.

A float32 matrix product depends on which rows are multiplied together, and a sum of float64 matrices on
its order. Both are fixed here, before it is known how many threads, processes or machines will work: every
worker takes whole groups, and groups are added in the order of their index. The same rows give the same
bits on any number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass

from bochner.validation import check_count

BLOCK_ROWS = 8192
"""Rows multiplied at once: from here on the product runs at full speed."""
MOST_GROUPS = 64
"""Groups of a pass: enough for 32 workers to be kept busy, few enough for all their sums to travel."""


@dataclass(frozen=True)
class BlockGrid:
    """Blocks of `block_rows` consecutive rows, and groups of consecutive blocks.

    Raises:     ValueError if a count is not a positive integer.
    Example:
        >>> grid = BlockGrid(1_000_000)
        >>> grid.num_blocks, grid.blocks_per_group, grid.num_groups, grid.group(60)
        (123, 2, 62, slice(983040, 999424, None))
    """

    num_rows: int
    block_rows: int = BLOCK_ROWS

    def __post_init__(self) -> None:
        check_count("num_rows", self.num_rows)
        check_count("block_rows", self.block_rows)

    @property
    def num_blocks(self) -> int:
        """Blocks of the whole grid, the last one shorter."""
        return -(-self.num_rows // self.block_rows)

    @property
    def blocks_per_group(self) -> int:
        """Blocks of every group but the last."""
        return -(-self.num_blocks // MOST_GROUPS)

    @property
    def group_rows(self) -> int:
        """Rows of every group but the last."""
        return self.blocks_per_group * self.block_rows

    @property
    def num_groups(self) -> int:
        """At most MOST_GROUPS."""
        return -(-self.num_blocks // self.blocks_per_group)

    def group(self, index: int) -> slice:
        """The rows of one group."""
        if not 0 <= index < self.num_groups:
            raise IndexError(f"group {index} of {self.num_groups}")
        start = index * self.group_rows
        return slice(start, min(start + self.group_rows, self.num_rows))

    def groups(self) -> list[slice]:
        """The rows of all groups, in the order in which their sums are added."""
        return [self.group(i) for i in range(self.num_groups)]
