r"""DPH-RL in TRL: `GRPOTrainer` with the stored answers of D_pef added to its loss.

    DPHTrainer(model, rewards, GRPOConfig(...), store=held, divergence=generator("js"), eta=0.5, rehearsal_rows=32)

L = L_exp + eta L_pef. L_exp is TRL's own surrogate on the rollouts, by TRL's own code: all that TRL does to a rollout
stays as its user configured it, but that it continues the token ids that the store has of its prompt. L_pef is
`losses.partitioned_loss` on stored answers in a forward pass of their own.
`docs/trl.md` has a whole program, what to watch, and how the two fit together.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dphlib.integrations.store import Store
from dphlib.losses import IGNORE, NEAR_PERFECT, Denominators, partitioned_loss
from dphlib.runtime.files import InputError
from dphlib.runtime.machine import derive_seed
from dphlib.types import Problem
from dphlib.verify import Verifier

try:
    import trl
except ModuleNotFoundError as missing:
    if missing.name != "trl":
        raise
    raise ModuleNotFoundError(
        'dphlib.integrations.trl needs TRL, which is not installed: pip install "dphlib[trl]"', name="trl"
    ) from None

from datasets import Dataset
from huggingface_hub import snapshot_download
from packaging.specifiers import SpecifierSet

TESTED = ">=1.16,<1.17"
"""The versions of TRL that this module is tested with; others get a warning."""


class DPHTrainer(trl.GRPOTrainer):
    """GRPO on D_exp, and a divergence to the initial policy on the stored answers of D_pef.

    Args:
        *args, **kwargs: as for `trl.GRPOTrainer`. `train_dataset` is `prompt_dataset(store.exploration)` unless given.
        store: partition and stored answers, see `dphlib.integrations.store`.
        divergence: of `dphlib.divergences.generator`, or any function of d = log pi_theta - log pi_ref.
        eta: weight of L_pef, above 0.
        rehearsal_rows: stored answers for each optimizer step, over all processes and micro-batches.
        base: folder with the weights that the model was loaded from, when its own name does not lead there.

    Raises:
        InputError: the store is empty or of another base or tokenizer, or a setting would leave it untrained; the
            message says which.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "grpo", "dph-rl"]  # type: ignore[misc]  # this and the next two: for TRL's model card
    _name = "DPH-RL"
    _paper: ClassVar[dict[str, str]] = {  # type: ignore[misc]
        "title": "The Choice of Divergence: A Neglected Key to Mitigating Diversity Collapse in Reinforcement Learning "
        "with Verifiable Reward",
        "id": "2509.07430",
    }

    def __init__(
        self,
        *args: Any,
        store: Store,
        divergence: Callable[[Tensor], Tensor],
        eta: float,
        rehearsal_rows: int,
        base: Path | str | None = None,
        **kwargs: Any,
    ) -> None:
        warn_of_untested(trl.__version__)
        if not store.references:
            raise InputError(
                f"the store has no stored answer; its threshold is {store.threshold}: partition with a lower one and "
                "export again, or take trl.GRPOTrainer, which this is without stored answers"
            )
        if not eta > 0:
            raise InputError(f"eta is {eta}; it must be above 0, without L_pef this is trl.GRPOTrainer, take that")
        if len(args) < 4:  # not given by its place
            kwargs.setdefault("train_dataset", prompt_dataset(store.exploration))
        super().__init__(*args, **kwargs)
        store.refuse_other(_weights_folder(self, base), self.processing_class)
        slots = self.args.gradient_accumulation_steps * self.accelerator.num_processes
        if rehearsal_rows < slots:
            raise InputError(
                f"rehearsal_rows is {rehearsal_rows}; an optimizer step has {slots} micro-batches over all processes, "
                f"and each takes one row at least: give {slots} or more, or accumulate fewer micro-batches"
            )
        spread = self.accelerator.num_processes > 1 or self.args.deepspeed_plugin is not None
        checkpointing: Any = self.args.gradient_checkpointing_kwargs or {}
        if spread and self.args.gradient_checkpointing and checkpointing.get("use_reentrant"):
            # It runs a backward pass per block and forward pass, so gradients would be reduced twice in a step.
            raise InputError(
                "gradient checkpointing with use_reentrant=True, which TRL sets for adapters under ZeRO 3, allows one "
                "forward pass per step where several processes train: give gradient_checkpointing=False, or take ZeRO "
                "2 or DDP with use_reentrant=False"
            )
        if self.temperature != 1.0:
            raise InputError(
                f"temperature is {self.temperature}; the stored log-probabilities are at 1.0, and TRL scores at the "
                "temperature that it samples with: leave GRPOConfig's at 1.0"
            )
        self.divergence, self.eta, self.rehearsal_rows = divergence, eta, rehearsal_rows
        self._stored = list(zip(store.prompt_ids, store.references, strict=True))
        problems = [*store.exploration, *(reference.problem for reference in store.references)]
        ids = [*store.exploration_ids, *store.prompt_ids]
        self._exported_ids = {problem.prompt: list(row) for problem, row in zip(problems, ids, strict=True)}
        self._micro_batch = (-1, -1)  # optimizer step, and which of its micro-batches

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """Prompts of the store as the token ids that it has of them, others by TRL.

        TRL's own loop has no way to pass token ids: it makes them here, of a batch's column `prompt`, and gives them to
        whatever generates.
        """
        ids = [self._exported_ids.get(prompt) if isinstance(prompt, str) else None for prompt in prompts]
        if None not in ids:
            return ids, None, {}  # type: ignore[return-value]
        made, images, fields = super()._tokenize_prompts(prompts)
        return [by_trl if row is None else row for row, by_trl in zip(ids, made, strict=True)], images, fields

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """TRL's loss of the rollouts in `inputs`, and while training eta L_pef of this micro-batch's stored answers."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss + self._rehearsal_loss(model) if self.model.training else loss  # type: ignore[union-attr]

    def _rehearsal_loss(self, model: Any) -> Tensor:
        step, number = self.state.global_step, self._micro_batch[1] + 1
        self._micro_batch = (step, number if step == self._micro_batch[0] else 0)
        processes = self.accelerator.num_processes
        slots = self.current_gradient_accumulation_steps * processes  # the last step of an epoch may have fewer
        drawn = rehearsal_order(len(self._stored), self.args.seed, step * self.rehearsal_rows, self.rehearsal_rows)
        rows = drawn[self._micro_batch[1] * processes + self.accelerator.process_index :: slots]
        tokens = sum(len(self._stored[row][1].token_ids) for row in drawn)

        prompts_B_T, prompt_mask_B_T = self._padded([self._stored[row][0] for row in rows], "left")
        answers_B_T, mask_B_T = self._padded([self._stored[row][1].token_ids for row in rows], "right")
        ref_B_T, _ = self._padded([self._stored[row][1].logprobs for row in rows], "right")
        logprobs_B_T, _, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([prompts_B_T, answers_B_T], 1),
            torch.cat([prompt_mask_B_T, mask_B_T], 1).long(),
            answers_B_T.shape[1],
        )
        # Gradients of processes are averaged, those of micro-batches added up.
        loss, stats = partitioned_loss(
            logprobs_B_T,
            loss_id_B_T=torch.where(mask_B_T, NEAR_PERFECT, IGNORE),
            ref_logprobs_B_T=ref_B_T,
            divergence=self.divergence,
            eta=self.eta,
            denominators=Denominators(0, tokens / processes),
        )
        log_ratio = (logprobs_B_T.detach() - ref_B_T)[mask_B_T].mean()
        for name, value in (("divergence", stats.near_perfect * slots / processes), ("log_ratio", log_ratio)):
            self._metrics["train"][f"rehearsal/{name}"].append(self.accelerator.gather(value).mean().item())
        return loss

    def _padded(self, rows: Sequence[Sequence[float]], side: str) -> tuple[Tensor, Tensor]:
        """Rows as one tensor on the trainer's device, and where they are not padding."""
        device, padding = self.accelerator.device, self._tokenizer.pad_token_id
        tensors = [torch.tensor(row, device=device) for row in rows]
        masks = [torch.ones(len(row), dtype=torch.bool, device=device) for row in rows]
        padded = pad_sequence(tensors, batch_first=True, padding_value=padding, padding_side=side)
        return padded, pad_sequence(masks, batch_first=True, padding_value=False, padding_side=side)


def warn_of_untested(version: str) -> None:
    """Warns when TRL's `version` lies outside `TESTED`."""
    if not SpecifierSet(TESTED).contains(version, prereleases=True):
        warnings.warn(
            f"TRL {version} is installed, dphlib.integrations.trl is tested with {TESTED}: check that the logged "
            'rehearsal/divergence falls, or pip install "dphlib[trl]"',
            stacklevel=3,
        )


def rehearsal_order(stored: int, seed: int, first: int, count: int) -> list[int]:
    """Indices of the stored answers at places `first` to `first + count - 1` of an endless order.

    Every answer comes once, shuffled, then every one again in another order.

    >>> sorted(rehearsal_order(4, 0, 0, 4)), sorted(rehearsal_order(4, 0, 4, 4))
    ([0, 1, 2, 3], [0, 1, 2, 3])
    """
    return [_shuffled(stored, seed, place // stored)[place % stored] for place in range(first, first + count)]


@lru_cache(maxsize=2)
def _shuffled(stored: int, seed: int, turn: int) -> list[int]:
    return random.Random(derive_seed("references", seed, turn)).sample(range(stored), stored)


def prompt_dataset(problems: Sequence[Problem]) -> Dataset:
    """The problems as TRL reads them: the column `prompt`, and what a reward function needs to judge an answer.

    TRL hands every other column to the reward functions as an argument of its name.

    Raises:
        InputError: no problem; TRL has nothing to roll out.
    """
    if not problems:
        raise InputError("no problem to explore: D_exp is empty; partition with a higher threshold and export again")
    columns = ("prompt", "id", "suite", "kind", "gold", "db_id")
    rows = {name: [getattr(problem, name) for problem in problems] for name in columns}
    return Dataset.from_dict({"problem_id" if name == "id" else name: values for name, values in rows.items()})


def verified_reward(verifier: Verifier, problems: Sequence[Problem]) -> Callable[..., list[float | None]]:
    """A reward function for TRL: 1.0 for a correct answer, 0.0 for another, None for one that could not be judged.

    Args:
        verifier: open while training.
        problems: those of the data set.
    """
    known = {problem.id: problem for problem in problems}

    def verified(completions: Sequence[str], problem_id: Sequence[str], **_: Any) -> list[float | None]:
        pairs = [(known[name], text) for name, text in zip(problem_id, completions, strict=True)]
        return [verdict.reward for verdict in verifier.verify_many(pairs)]

    return verified


def _weights_folder(trainer: trl.GRPOTrainer, base: Path | str | None) -> Path:
    """Where the files lie that the trainer's model was loaded from."""
    if base is not None:
        return Path(base)
    config = trainer.accelerator.unwrap_model(trainer.model).config
    name, commit = config._name_or_path, getattr(config, "_commit_hash", None)
    if name and Path(name).is_dir():
        return Path(name)
    if commit is not None:
        return Path(snapshot_download(name, revision=commit, local_files_only=True, allow_patterns=["*.safetensors"]))
    raise InputError(
        f"cannot tell which weights the model has (its name or path is {name!r}); give base=FOLDER, the folder with "
        "the *.safetensors that it was loaded from"
    )
