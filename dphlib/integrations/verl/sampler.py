"""The order of a step's rows in verl, the mini-batch that each falls into, and the weight that it has there.

verl hands a step on in the order in which its rows arrived. Stored answers, which nothing has to draw, arrive first and
would all fall into the first mini-batch. `PartitionedSampler` deals them out, so that each mini-batch has its share.

It also says what each row counts for. verl divides the loss of a mini-batch by all its response tokens, N; the loss of
DPH has two means. So an explored row gets the weight N / N_exp and a stored answer eta N / N_pef, counted over its own
mini-batch on all processes. The weights travel in `rollout_is_weights`, the one field beside log-probs, advantages and
mask that verl's `ppo_loss` hands to a policy loss, and which verl itself does not write where old log-probs are the
rollout's (bypass mode). A row has two numbers there, `[as explored, as replayed]`; one is 0, which tells its kind.

Which rows make up a mini-batch is known before verl forms it: verl shares rows out to processes by their lengths with a
function of its own, which is called here on the same rows. Tests hold this to verl's trainer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy

from dphlib.runtime.files import RunError

REPLAYED = "dph_replayed"
"""The column of `plugin.PartitionedDataset` that tells stored answers from prompts, uint8."""
WEIGHTS = "rollout_is_weights"
AS_EXPLORED, AS_REPLAYED = 0, 1
"""The two columns of `WEIGHTS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the sampler has to know of a step: verl's `trainer.v1.sampler.sampler_kwargs`.

    Args:
        eta: weight of L_pef.
        rehearsal_rows: stored answers of a step.
        mini_batch_rows: rows of a mini-batch over all processes, `actor.ppo_mini_batch_size` x `rollout.n`.
        processes: data-parallel processes of the actor.
    """

    eta: float
    rehearsal_rows: int
    mini_batch_rows: int
    processes: int

    def __post_init__(self) -> None:
        for field in fields(self):
            if not (value := getattr(self, field.name)) > 0:
                raise RunError(f"sampler_kwargs.{field.name} is {value!r}; it must be > 0")
        if self.mini_batch_rows % self.processes:
            raise RunError(
                f"sampler_kwargs.mini_batch_rows is {self.mini_batch_rows}, not a multiple of processes,"
                f" {self.processes}; change actor.ppo_mini_batch_size"
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Step:
        """Read from `sampler_kwargs`; RunError where one is missing or unknown."""
        names = [field.name for field in fields(cls)]
        if sorted(settings) != sorted(names):
            raise RunError(
                f"trainer.v1.sampler.sampler_kwargs has {sorted(settings)}; needed: {sorted(names)}, see docs/verl.md"
            )
        return cls(eta=float(settings["eta"]), **{name: int(settings[name]) for name in names[1:]})


def interleaved(explored: int, replayed: int) -> numpy.ndarray:
    """An order of rows, `explored` of one kind and then `replayed` of the other, with both evenly spread.

    >>> interleaved(2, 4).tolist()
    [2, 0, 3, 4, 1, 5]
    """
    shares = [(numpy.arange(count) + 0.5) / count for count in (explored, replayed) if count]
    return numpy.concatenate(shares).argsort(kind="stable")


def shared_out(lengths: Sequence[int], step: Step) -> list[list[int]]:
    """The rows that each process gets of a step of rows with these lengths, as verl's `_balance_batch` shares them out.

    Numbers from `len(lengths)` on are the rows with which verl fills up the last mini-batch.
    """
    import torch
    from verl.trainer.ppo.padding_utils import SYNTHETIC_PADDING_SEQ_LEN
    from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions

    padding = [SYNTHETIC_PADDING_SEQ_LEN] * (-len(lengths) % step.mini_batch_rows)
    workloads = calculate_workload(torch.tensor([*lengths, *padding], dtype=torch.int64))
    return get_seqlen_balanced_partitions(workloads, k_partitions=step.processes, equal_size=True)


def mini_batch_of(lengths: Sequence[int], step: Step) -> numpy.ndarray:
    """The number of the mini-batch in which verl trains on each row of a step: each process takes its own in order."""
    parts = shared_out(lengths, step)
    numbers = numpy.empty(sum(map(len, parts)), dtype=int)
    for part in parts:
        numbers[part] = numpy.arange(len(part)) // (step.mini_batch_rows // step.processes)
    return numbers[: len(lengths)]


def dealt(lengths: Sequence[int], replayed: Sequence[bool], step: Step) -> list[int]:
    """An order of a step's rows in which each mini-batch has its share of the replayed ones.

    They are dealt to the mini-batches in turn, process by process; the others fill up. verl breaks ties between rows of
    equal length by position, which the new order changes; `levelled` makes up for it.
    """
    parts = shared_out(lengths, step)
    size = step.mini_batch_rows // step.processes
    count = len(parts[0]) // size
    order: list[list[int]] = [[] for _ in range(count)]
    turn = 0
    for part in parts:
        shares: list[list[int]] = [[] for _ in range(count)]
        shares[-1] = [row for row in part if row >= len(lengths)]  # verl appends its padding
        for row in part:
            if row < len(lengths) and replayed[row]:
                while len(shares[turn % count]) == size:
                    turn += 1
                shares[turn % count].append(row)
                turn += 1
        rest = iter([row for row in part if row < len(lengths) and not replayed[row]])
        for number, share in enumerate(shares):
            while len(share) < size:
                share.append(next(rest))
            order[number] += sorted(row for row in share if row < len(lengths))
    return levelled([row for rows in order for row in rows], lengths, replayed, step)


def levelled(order: list[int], lengths: Sequence[int], replayed: Sequence[bool], step: Step) -> list[int]:
    """The order with rows of equal length exchanged until mini-batches have as many replayed rows each, or one more.

    An exchange changes no other row's mini-batch, because verl looks at lengths alone.
    """
    numbers = mini_batch_of([lengths[row] for row in order], step)
    counts = numpy.bincount(numbers, weights=[replayed[row] for row in order])
    while counts.max() - counts.min() > 1:
        most, least = counts.argmax(), counts.argmin()
        takers = {lengths[order[i]]: i for i in numpy.flatnonzero(numbers == least) if not replayed[order[i]]}
        givers = (i for i in numpy.flatnonzero(numbers == most) if replayed[order[i]] and lengths[order[i]] in takers)
        if (giver := next(givers, None)) is None:
            break
        taker = takers[lengths[order[giver]]]
        order[giver], order[taker] = order[taker], order[giver]
        counts[most] -= 1
        counts[least] += 1
    return order


def weights_of(
    numbers: numpy.ndarray, tokens: numpy.ndarray, replayed: numpy.ndarray, eta: float
) -> tuple[numpy.ndarray, dict[str, float]]:
    """The weights of a step's rows, (rows, 2) in fp32, and figures for verl's log.

    Args:
        numbers: of the mini-batch of each row.
        tokens: response tokens of each row.
        replayed: whether it is a stored answer.
        eta: weight of L_pef.

    Raises:
        RunError: a mini-batch that lacks one of the two kinds, so that its mean does not exist.
    """
    weights = numpy.zeros((len(tokens), 2), dtype=numpy.float32)
    counted: dict[str, list[int]] = {"rehearsal_tokens": [], "explore_tokens": []}
    for number in range(numbers.max() + 1):
        for column, kind, name, scale in (
            (AS_EXPLORED, ~replayed, "explore_tokens", 1.0),
            (AS_REPLAYED, replayed, "rehearsal_tokens", eta),
        ):
            rows = (numbers == number) & kind
            if not rows.any():
                raise RunError(
                    f"mini-batch {number + 1} of this step has {int((numbers == number).sum())} rows and no"
                    f" {name.removesuffix('_tokens')} row among them: fewer or larger mini-batches"
                    " (actor.ppo_mini_batch_size), more data.dph.rehearsal_rows, or see the agent loop workers' log"
                )
            counted[name].append(int(tokens[rows].sum()))
            everything = int(tokens[numbers == number].sum())
            weights[rows, column] = scale * everything / counted[name][-1]
    told = {f"dph/{name}/{least.__name__}": least(counts) for name, counts in counted.items() for least in (min, max)}
    rows = {"dph/explore_rows": int((~replayed).sum()), "dph/rehearsal_rows": int(replayed.sum())}
    return weights, {**told, **rows, "dph/eta": eta}


class PartitionedSampler:
    """verl's `trainer.v1.sampler.custom_sampler`: its replay buffer, with the rows of a step dealt and weighed.

    Raises:
        RunError: settings that are missing, a step without all its stored answers or without rollouts.
    """

    def __init__(self, *, sampler_kwargs: Mapping[str, Any], **settings: Any) -> None:
        from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

        self._step = Step.of(sampler_kwargs)
        self._buffer = ReplayBuffer(sampler_kwargs=sampler_kwargs, **settings)

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        """A step's rows, as verl's replay buffer gives them, in their order, and figures for the log."""
        import torch
        import transfer_queue as tq
        from tensordict import TensorDict

        batch, metrics = self._buffer.sample(
            global_steps=global_steps, partition_id=partition_id, batch_size=batch_size
        )
        if partition_id == "val":
            return batch, metrics
        # Keys begin with ids that verl draws at random: no order of arrival is left, and groups stay together.
        batch.reorder(sorted(range(len(batch)), key=batch.keys.__getitem__))
        kinds = tq.kv_batch_get(keys=batch.keys, partition_id=partition_id, select_fields=[REPLAYED])
        replayed = [bool(row) for row in kinds[REPLAYED]]
        if (found := sum(replayed)) != self._step.rehearsal_rows:
            raise RunError(
                f"{found} rows of this step are replayed, {self._step.rehearsal_rows} were asked for; the log of the"
                " agent loop workers says why they failed, or data.custom_cls is not dphlib's PartitionedDataset"
            )
        order = dealt([tag["seq_len"] for tag in batch.tags], replayed, self._step)
        batch.reorder(order)
        numbers = mini_batch_of([tag["seq_len"] for tag in batch.tags], self._step)
        tokens = numpy.array([tag["response_len"] for tag in batch.tags])
        weights, told = weights_of(numbers, tokens, numpy.array(replayed)[order], self._step.eta)
        written = TensorDict({WEIGHTS: torch.from_numpy(weights)}, batch_size=len(batch))
        tq.kv_batch_put(keys=batch.keys, partition_id=partition_id, fields=written)
        return batch, metrics | told
