"""Endless shuffled streams over rows, whose whole state is one integer."""

from __future__ import annotations

import torch


class RowStream:
    """Yields row indices: each pass over the rows is a fresh permutation, passes follow each other without a gap.

    The permutations are those of TRL's `RepeatSampler` with the same seed, so a GRPO-only run sees the rows that
    [`~trl.GRPOTrainer`] would. Unlike the sampler, an incomplete last batch is not dropped but filled from the next
    pass.

    Args:
        size (`int`): Number of rows. Nothing can be taken from none.
        seed (`int`): Seed of the permutations.
        shuffle (`bool`, *optional*, defaults to `True`): Whether to permute; otherwise rows come in order.
    """

    def __init__(self, size: int, seed: int, shuffle: bool = True):
        self.size, self.seed, self.shuffle = size, seed, shuffle
        self.position = 0  # rows yielded since the start of the run: the state, to be set on resume
        self._generator = torch.Generator()
        self._pass = -1
        self._order: list[int] = list(range(size))

    def take(self, count: int) -> list[int]:
        """The next `count` row indices. Raises `ValueError` if there are no rows."""
        if count and not self.size:
            raise ValueError("there are no rows to take")
        indices = []
        for position in range(self.position, self.position + count):
            pass_index, offset = divmod(position, self.size)
            if self.shuffle:
                self._seek(pass_index)
            indices.append(self._order[offset])
        self.position += count
        return indices

    def _seek(self, pass_index: int) -> None:
        # One generator yields the permutations in turn, so pass k needs the k before it; a resume pays that once.
        if pass_index < self._pass:
            self._pass = -1
        if self._pass == -1:
            self._generator.manual_seed(self.seed)
        while self._pass < pass_index:
            self._order = torch.randperm(self.size, generator=self._generator).tolist()
            self._pass += 1
