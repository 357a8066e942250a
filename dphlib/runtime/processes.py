"""Several processes that train one policy: how work is cut over them, and how its results are joined again.

Every process runs the whole program on the same data: it draws the same prompts, ends up with the same answers,
verdicts, advantages and counts, and takes the same optimizer step. Cut over the processes is what takes time: decoding,
judging, scoring, forward and backward passes. So a sum over the batch, dynamic sampling and the denominators of the
loss need no thought, and the result is that of one process but for the order in which floats are added up.

    processes = launched.join()                         # ALONE without a launcher
    trainer.train(policy, ..., processes=processes)

Nothing here imports torch until processes talk to each other, and `ALONE` never does. How they are started, and what
happens when one is lost: see `launched`. Sharded weights: see `sharding`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dphlib.runtime.files import RunError

if TYPE_CHECKING:
    from torch import Tensor

_BUCKET = 2**24
"""Numbers that are added up in one message."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those of the run.

    Args:
        rank: its number, from 0; the first one writes files.
        count: of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files, logs and speaks."""
        return self.rank == 0

    # --- How work is cut: every process computes the same cut ---

    def cut(self, count: int) -> tuple[int, int]:
        """Start and end of this process's part of `count` items in a row.

        >>> [Processes(rank, 3).cut(4) for rank in range(3)]
        [(0, 1), (1, 2), (2, 4)]
        """
        return count * self.rank // self.count, count * (self.rank + 1) // self.count

    def shares(self, keys: Sequence[Hashable], sizes: Sequence[int]) -> list[list[int]]:
        """Indices that each process takes: equal keys together, about equal sums of sizes, in order.

        >>> Processes(0, 2).shares(["a", "b", "a", "c"], [4, 5, 4, 2])
        [[0, 2], [1, 3]]
        """
        if self.count == 1:
            return [list(range(len(keys)))]
        members: dict[Hashable, list[int]] = {}
        for index, key in enumerate(keys):
            members.setdefault(key, []).append(index)
        groups = sorted(members.values(), key=lambda group: -sum(sizes[i] for i in group))
        shares: list[list[int]] = [[] for _ in range(self.count)]
        loads = [0] * self.count
        for group in groups:
            lightest = loads.index(min(loads))
            shares[lightest] += group
            loads[lightest] += sum(sizes[i] for i in group)
        return [sorted(share) for share in shares]

    def spread(
        self, work: Callable[[list[Item]], list[Result]], items: Sequence[Item], keys: Sequence[Hashable],
        sizes: Sequence[int],
    ) -> list[Result]:  # fmt: skip
        """`work(items)`, each process on its share (none perhaps), and all results in order on every process."""
        if self.count == 1:
            return work(list(items))
        shares = self.shares(keys, sizes)
        results: list[Any] = [None] * len(items)
        for share, part in zip(shares, self.gather(work([items[i] for i in shares[self.rank]])), strict=True):
            for index, result in zip(share, part, strict=True):
                results[index] = result
        return results

    # --- How processes talk ---

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, by rank."""
        if self.count == 1:
            return [value]
        import torch.distributed

        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over the processes; all must have the same ones, in the same order."""
        if self.count == 1:
            return
        import torch

        bucket: list[Tensor] = []
        for index, tensor in enumerate(tensors):
            bucket.append(tensor)
            ahead = tensors[index + 1] if index + 1 < len(tensors) else None
            if ahead is None or ahead.dtype != tensor.dtype or sum(t.numel() for t in bucket) >= _BUCKET:
                flat = torch.cat([t.reshape(-1) for t in bucket])
                torch.distributed.all_reduce(flat)
                for held, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                    held.copy_(part.view_as(held))
                bucket = []

    def unite(self, flags: Tensor) -> Tensor:
        """True where it is True in any process, for a Boolean tensor on the CPU."""
        if self.count == 1:
            return flags
        import torch

        numbers = flags.to(torch.uint8)
        torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
        return numbers.bool()

    def wait(self) -> None:
        """Until all processes are here."""
        self.gather(None)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process runs the body, then the others do, and find what it made."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def require_equal(self, what: str, value: Any) -> None:
        """Raises `RunError` on every process when one has another `value`: their steps would drift apart unseen."""
        values = self.gather(value)
        others = [str(rank) for rank, other in enumerate(values) if other != values[0]]
        if others:
            raise RunError(
                f"{what} differ between process 0 and {', '.join(others)}; give all machines the same code, settings, "
                "files and folder of the runs, and run again"
            )


ALONE = Processes()
"""One process, which talks to nobody."""
