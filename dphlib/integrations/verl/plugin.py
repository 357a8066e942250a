r"""DPH in verl's trainer (0.9): a policy loss, an advantage, a sampler, agent loops, a data set and a reward.

verl imports this module by `VERL_USE_EXTERNAL_MODULES=dphlib.integrations.verl.plugin` and finds the rest by its
settings: `actor.policy_loss.loss_mode=dph_js`, a name of `settings.methods.METHODS`, and `algorithm.adv_estimator=dph`.
docs/verl.md lists them and says what was chosen and why, docs/verl_8gpu.sh is a whole launch.

    row          `PartitionedDataset` lays out each batch: prompts of D_exp and stored answers, each rolled out once
    replay       `ReplayLoop` answers with the stored tokens and gives their reference log-probs as the rollout's
    old          verl's bypass mode hands the rollout's log-probs to the loss as old log-probs, hence on a replayed row
                 those of pi_ref, and on the others those of the policy that sampled
    weight       `PartitionedSampler`, verl's replay buffer, deals the rows to mini-batches and gives each two weights
    loss         the policy loss tells rows apart by these weights and calls `losses.partitioned_loss` on both kinds

Not here: methods with an online reference (rkl, dph_js_definition), dynamic sampling, verl's asynchronous trainers,
its trainer before `use_v1`, and tools or several turns. Each is refused where it can be recognised.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from torch.utils.data import Dataset

from dphlib.integrations.verl.loss import ADVANTAGE, REHEARSING, check_settings, partitioned_advantage, policy_loss
from dphlib.integrations.verl.sampler import REPLAYED, PartitionedSampler, interleaved
from dphlib.integrations.verl.store import EXPLORE_LOOP, REPLAY_LOOP, check_store, read_store
from dphlib.runtime.files import RunError
from dphlib.runtime.machine import package_version
from dphlib.types import Problem

VERL = "0.9.1"
"""The version that tests run; what is relied on (order of rows, fields of a batch) others may do otherwise."""

__all__ = ["PartitionedDataset", "PartitionedSampler", "compute_score", "register"]


def _check_whole(data: Any) -> None:
    """Checks verl's whole configuration, of which `data` is a part: here, before any model is loaded."""
    from omegaconf import OmegaConf

    check_settings(OmegaConf.select(data, ".."))


# --- Rows -------------------------------------------------------------------------------------------------------


def schedule(explore: int, stored: int, prompts: int, rehearsal_rows: int, epochs: int, seed: int) -> numpy.ndarray:
    """Row numbers of a whole training, (steps, prompts + rehearsal_rows): D_exp's rows come first in the file.

    In a step stored answers lie evenly among the prompts: verl gives each agent-loop worker a stretch of it. Both sets
    are drawn without replacement, shuffled anew each time they are used up. An epoch is one pass over D_exp.

    >>> schedule(explore=4, stored=2, prompts=2, rehearsal_rows=1, epochs=1, seed=0).shape
    (2, 3)
    """
    steps = epochs * explore // prompts
    if steps < 1 or stored < 1:
        raise ValueError(f"{explore} prompts and {stored} stored answers make no step of {prompts} + {rehearsal_rows}")
    random = numpy.random.default_rng(seed)

    def draws(count: int, wanted: int) -> numpy.ndarray:
        rounds = [random.permutation(count) for _ in range(math.ceil(wanted / count))]
        return numpy.concatenate(rounds)[:wanted].reshape(steps, -1)

    rows = numpy.hstack([draws(explore, steps * prompts), explore + draws(stored, steps * rehearsal_rows)])
    return rows[:, interleaved(prompts, rehearsal_rows)]


class PartitionedDataset(Dataset):
    """verl's `data.custom_cls` for files of `dph verl`: every batch has prompts of D_exp and stored answers.

    Reads `data.dph`: `explore_prompts` and `rehearsal_rows` of a step (they add up to `data.train_batch_size`),
    `rollouts` per prompt, `epochs` over D_exp, and `seed`. A file without stored answers is given out in its order.

    Raises:
        RunError: a store of another base or tokenizer than that which verl loaded, or a file of another kind.
        ValueError: settings that do not fit together, or rows longer than `data.max_*_length`.
    """

    def __init__(
        self, data_files: Any, tokenizer: Any, config: Any, processor: Any = None, max_samples: int = -1
    ) -> None:
        files = [data_files] if isinstance(data_files, str | os.PathLike) else list(data_files)
        if len(files) != 1 or processor is not None or max_samples > 0:
            raise ValueError(
                f"data files {[str(file) for file in files]}, processor {type(processor).__name__}, max_samples"
                f" {max_samples}; DPH in verl reads one file, whole, of a model of text"
            )
        self._table, store = read_store(Path(files[0]))
        folder = Path(tokenizer.name_or_path)
        if not folder.is_dir():
            raise RunError(f"model.path is {folder}, no folder; download the base, its files are compared by hash")
        check_store(store, folder, tokenizer)
        self._check_lengths(files[0], config)
        self._order = numpy.arange(self._table.num_rows)
        self._rollouts: int | None = None
        if store.references:
            _check_whole(config)
            settings = config.get("dph")
            prompts, rehearsed = int(settings.explore_prompts), int(settings.rehearsal_rows)
            if prompts + rehearsed != config.train_batch_size or config.get("gen_batch_size") or config.shuffle:
                raise ValueError(
                    f"data.train_batch_size is {config.train_batch_size}, gen_batch_size"
                    f" {config.get('gen_batch_size')}, shuffle {config.shuffle}; needed: {prompts + rehearsed}"
                    " (dph.explore_prompts + dph.rehearsal_rows), null, false"
                )
            self._rollouts = int(settings.rollouts)
            size = store.exploration, store.references, prompts, rehearsed
            self._order = schedule(*size, int(settings.epochs), int(settings.get("seed", 0))).ravel()

    def _check_lengths(self, file: Any, config: Any) -> None:
        from pyarrow import compute

        for column, name in (("prompt_ids", "max_prompt_length"), ("answer_ids", "max_response_length")):
            lengths = compute.list_value_length(compute.struct_field(self._table["extra_info"], column))
            longest = compute.max(lengths).as_py()
            if longest > config[name]:
                raise ValueError(f"{file}: {longest} {column} in a row, data.{name} is {config[name]}; raise it")

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, item: int) -> dict[str, Any]:
        row = self._table.slice(int(self._order[item]), 1).to_pylist()[0]
        row["raw_prompt"] = row.pop("prompt")
        row |= {"index": row["extra_info"]["index"], "tools_kwargs": {}, "interaction_kwargs": {}}
        replayed = row["agent_name"] == REPLAY_LOOP
        row[REPLAYED] = torch.tensor([replayed], dtype=torch.uint8)
        if self._rollouts is not None:
            row["__rollout_n__"] = 1 if replayed else self._rollouts
        return row


class ReplayLoop:
    """An agent loop that answers with a stored answer and its reference log-probs; no model is asked."""

    def __init__(self, **_: Any) -> None: ...  # verl hands over what a loop that asks a model needs

    async def run(
        self, sampling_params: Mapping[str, Any], *, extra_info: Mapping[str, Any], global_steps: int = 1, **_: Any
    ) -> Any:
        from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

        weights = int(global_steps) - 1  # the version that this step's rollouts come from
        return AgentLoopOutput(  # all that verl's single turn sets is set: rows of one batch have the same fields
            prompt_ids=list(extra_info["prompt_ids"]),
            response_ids=list(extra_info["answer_ids"]),
            response_mask=[1] * len(extra_info["answer_ids"]),
            response_logprobs=list(extra_info["answer_logprobs"]),
            reward_score=0.0,  # no group, no advantage: in verl's mean of scores a replayed row counts as 0
            routed_experts=None,
            multi_modal_data={},
            mm_processor_kwargs={},
            mm_processor_output=None,
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields={
                "min_global_steps": weights,
                "max_global_steps": weights,
                "turn_scores": [],
                "tool_rewards": [],
                "reward_extra_info": {},
            },
        )


class ExploreLoop:
    """verl's single turn, begun with the stored ids of the prompt instead of a chat template."""

    def __init__(self, **settings: Any) -> None:
        from verl.experimental.agent_loop import SingleTurnAgentLoop

        self._turn = SingleTurnAgentLoop(**settings)

    async def run(self, sampling_params: dict[str, Any], *, extra_info: Mapping[str, Any], **fields: Any) -> Any:
        async def stored(messages: Any, **_: Any) -> list[int]:
            return list(extra_info["prompt_ids"])

        self._turn.ct_build_initial_tokens = stored
        return await self._turn.run(sampling_params, extra_info=extra_info, **fields)


# --- Reward -----------------------------------------------------------------------------------------------------


@cache
def _verifier(databases: str, workers: int) -> Any:
    from dphlib.verify import Verifier

    return Verifier(Path(databases), workers)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any],
    databases: str = ".",
    workers: int = 1,
    **_: Any,
) -> float:
    """Reward 1 or 0 by dphlib's verifiers, as verl's `reward.custom_reward_function` calls it.

    Args:
        databases: folder with `<db_id>/<db_id>.sqlite`; `reward_kwargs.databases` of the custom reward function.
        workers: answers that are judged at a time in each of verl's `reward.num_workers` processes, which call this
            from several threads; `reward_kwargs.workers`.

    Raises:
        RunError: the answer could not be judged; verl leaves such a row out, it is never counted as wrong.
    """
    kind, db_id = extra_info["kind"], extra_info["db_id"] or None
    problem = Problem(extra_info["problem_id"], data_source, kind, "", ground_truth, db_id)
    (verdict,) = _verifier(str(databases), workers).verify_many([(problem, solution_str)])
    if verdict.reward is None:
        raise RunError(f"problem {problem.id}: the answer could not be judged ({verdict.detail})")
    return verdict.reward


# --- Registration -----------------------------------------------------------------------------------------------


def check_version(found: str | None) -> None:
    """Raises `RunError` where there is no verl, or another version than the tested one."""
    way_out = f'pip install "dphlib[verl]" "verl[vllm,fsdp]=={VERL}", in an environment of its own'
    if found is None:
        raise RunError(f"verl is not installed; {way_out}")
    if found != VERL:
        raise RunError(f"verl {found} is installed, dphlib's plug-in is for verl {VERL}; {way_out}")


def register() -> None:
    """Makes losses, advantage and agent loops known to verl. Importing this module calls it where verl is installed."""
    check_version(package_version("verl"))
    from verl.experimental.agent_loop.agent_loop import register as register_loop
    from verl.trainer.ppo.core_algos import register_adv_est, register_policy_loss

    for method in REHEARSING:
        register_policy_loss(method)(policy_loss(method))
    register_adv_est(ADVANTAGE)(partitioned_advantage)
    register_loop(REPLAY_LOOP)(ReplayLoop)
    register_loop(EXPLORE_LOOP)(ExploreLoop)


if importlib.util.find_spec("verl"):  # also where this module is imported before verl, which then finds it loaded
    register()
