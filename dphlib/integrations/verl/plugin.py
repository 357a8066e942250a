r"""DPH in verl's trainer (0.9): a policy loss, an advantage, two agent loops, a data set and a reward, without a fork.

verl imports this module by `VERL_USE_EXTERNAL_MODULES=dphlib.integrations.verl.plugin` and finds the rest by its
settings: `actor.policy_loss.loss_mode=dph_js`, a name of `settings.methods.METHODS`, and `algorithm.adv_estimator=dph`.
docs/verl.md lists them and says what was chosen and why, docs/verl_8gpu.sh is a whole launch.

    row          `PartitionedDataset` lays out each batch: prompts of D_exp, then stored answers, each rolled out once
    replay       `ReplayLoop` answers with the stored tokens, gives their reference log-probs as the rollout's, and
                 `REPLAY_REWARD` as the reward, a number that no reward function gives and that vanishes in a mean
    old          verl's bypass mode hands the rollout's log-probs to the loss as old log-probs, hence on a replayed row
                 those of pi_ref, and on the others those of the policy that sampled
    mark         the advantage reads that reward and sets such a row's advantage to `REPLAY_MARK` times its weight
    loss         the policy loss recognises rows by the mark and calls `losses.partitioned_loss` on both kinds at once

Not here: methods with an online reference (rkl, dph_js_definition), dynamic sampling, verl's asynchronous trainers,
its trainer before `use_v1`, and tools or several turns. Each is refused where it can be recognised.
"""

from __future__ import annotations

import importlib.util
import math
import os
import threading
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from torch.utils.data import Dataset

from dphlib.integrations.verl.loss import (
    ADVANTAGE,
    REHEARSING,
    REPLAY_REWARD,
    check_settings,
    partitioned_advantage,
    policy_loss,
)
from dphlib.integrations.verl.store import EXPLORE_LOOP, REPLAY_LOOP, check_store, read_store
from dphlib.runtime.files import RunError
from dphlib.runtime.machine import package_version
from dphlib.types import Problem

TESTED = ("0.9.1", "0.10")
"""verl from the first version on and before the second."""

# --- Rows -------------------------------------------------------------------------------------------------------


def schedule(explore: int, stored: int, prompts: int, rehearsal_rows: int, epochs: int, seed: int) -> numpy.ndarray:
    """Row numbers of a whole training, (steps, prompts + rehearsal_rows): D_exp's rows come first in the file.

    Both sets are drawn without replacement, shuffled anew each time they are used up. An epoch is one pass over D_exp.

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

    return numpy.hstack([draws(explore, steps * prompts), explore + draws(stored, steps * rehearsal_rows)])


class PartitionedDataset(Dataset):
    """verl's `data.custom_cls` for files of `dph verl`: every batch has prompts of D_exp, then stored answers.

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
        row["dummy_tensor"] = torch.zeros(1, dtype=torch.uint8)  # verl's own data set has it: a batch needs a tensor
        if self._rollouts is not None:
            row["__rollout_n__"] = 1 if row["agent_name"] == REPLAY_LOOP else self._rollouts
        return row


class ReplayLoop:
    """An agent loop that answers with a stored answer and its reference log-probs; no model is asked."""

    def __init__(self, trainer_config: Any, **_: Any) -> None:
        check_settings(trainer_config.config)

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
            reward_score=REPLAY_REWARD,
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
def _verifier(databases: str) -> tuple[Any, threading.Lock]:
    from dphlib.verify import Verifier

    return Verifier(Path(databases)), threading.Lock()


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any],
    databases: str = ".",
    **_: Any,
) -> float:
    """Reward 1 or 0 by dphlib's verifiers, as verl's `reward.custom_reward_function` calls it.

    Args:
        databases: folder with `<db_id>/<db_id>.sqlite`; `reward_kwargs.databases` of the custom reward function.

    Raises:
        RunError: the answer could not be judged; verl leaves such a row out, it is never counted as wrong.
    """
    kind, db_id = extra_info["kind"], extra_info["db_id"] or None
    problem = Problem(extra_info["problem_id"], data_source, kind, "", ground_truth, db_id)
    verifier, lock = _verifier(str(databases))
    with lock:  # verl calls from several threads
        (verdict,) = verifier.verify_many([(problem, solution_str)])
    if verdict.reward is None:
        raise RunError(f"problem {problem.id}: the answer could not be judged ({verdict.detail})")
    return verdict.reward


# --- Registration -----------------------------------------------------------------------------------------------


def check_version(found: str | None) -> None:
    """Warns of a verl that was not tested; raises `RunError` where there is none."""
    from packaging.version import Version

    if found is None:
        raise RunError('verl is not installed; pip install "dphlib[verl]", in an environment of its own')
    if not Version(TESTED[0]) <= Version(found) < Version(TESTED[1]):
        warnings.warn(
            f"verl {found} is installed; dphlib's plug-in is tested with verl >= {TESTED[0]}, < {TESTED[1]}:"
            " compare the first step with docs/verl.md before a long run",
            stacklevel=2,
        )


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
