"""What the adapters for TRL and verl cost themselves, as a share of the step they stand in.

    python tests/benchmarks/adapters.py [--steps 6] [--prompts 16]

TRL: real steps of `DPHTrainer`, rollouts and update, with the authors' mix of one stored answer to eight rollouts. A
forward and a backward pass of the stored answers belong to the method on any engine; what is timed as the adapter's is
the rest of `_rehearsal_loss`: choosing and padding rows, the loss, the logged numbers.

verl: the registered advantage and policy loss, forward and backward, on 2,048 rollouts and 256 replayed rows, beside a
forward and backward pass of the policy on the same tokens, and nothing else of a step: the share is an upper bound.
verl itself is not needed, its own loss is not taken off.

The policy is the CPU world's, so small that it hides an adapter's cost least.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy  # noqa: E402
import torch  # noqa: E402
from measuring import Target, tell  # noqa: E402
from small import sum_problems, tokenizer  # noqa: E402

from dphlib.divergences import generator  # noqa: E402
from dphlib.integrations import store  # noqa: E402
from dphlib.integrations.verl.loss import partitioned_advantage, policy_loss  # noqa: E402
from dphlib.integrations.verl.sampler import weights_of  # noqa: E402
from dphlib.models.load import load_model, new_model, save_model  # noqa: E402
from dphlib.partition import Partition, Reference  # noqa: E402
from dphlib.sampling.protocol import SamplingConfig  # noqa: E402
from dphlib.sampling.transformers import TransformersSampler  # noqa: E402
from dphlib.settings.stages import ModelConfig  # noqa: E402


def trl_share(steps: int, prompts: int) -> dict[str, float]:
    """Medians over steps, the first left out: seconds of a step, of the stored answers' pass, of the adapter itself."""
    from trl import GRPOConfig

    from dphlib.integrations.trl import DPHTrainer

    logging.getLogger("trl").setLevel(logging.ERROR)
    seen: list[dict[str, float]] = []

    class Timed(DPHTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            seen.append({"step_s": 0.0, "rehearsal_s": 0.0, "scoring_s": 0.0})
            started = time.perf_counter()
            loss = super().training_step(*args, **kwargs)
            seen[-1]["step_s"] = time.perf_counter() - started
            return loss

        def _rehearsal_loss(self, policy: Any) -> torch.Tensor:
            self.rehearsing, started = True, time.perf_counter()
            loss = super()._rehearsal_loss(policy)
            seen[-1]["rehearsal_s"] += time.perf_counter() - started
            self.rehearsing = False
            return loss

        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if getattr(self, "rehearsing", False):
                seen[-1]["scoring_s"] += time.perf_counter() - started
            return result

    problems = sum_problems(4 * prompts)
    near, explore = problems[: 2 * prompts], problems[2 * prompts :]
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        save_model(new_model(ModelConfig(), tokenizer(), 0), tokenizer(), base)
        policy, words = load_model(base)
        answers = TransformersSampler(policy, words).sample(near, SamplingConfig(1, 1.0, 1.0, 24), 0)
        stored = [Reference(p, a.token_ids, a.logprobs) for p, (a,) in zip(near, answers, strict=True)]
        store.export(Path(scratch) / "store", Partition(near, explore, stored), 6, base)
        config = GRPOConfig(
            scratch,
            per_device_train_batch_size=8 * prompts,
            num_generations=8,
            max_completion_length=24,
            max_steps=steps + 1,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            gradient_checkpointing=False,
            logging_steps=1000,
            delta=3.0,
            epsilon_high=0.28,
        )
        trainer = Timed(
            policy,
            lambda completions, **_: [float(len(text) % 2) for text in completions],
            config,
            processing_class=words,
            store=store.read(Path(scratch) / "store"),
            divergence=generator("forward_kl"),
            eta=0.2,
            rehearsal_rows=prompts,
            base=base,
        )
        trainer.train()
    timed = [row | {"adapter_s": row["rehearsal_s"] - row["scoring_s"]} for row in seen[1:]]
    medians = {name: statistics.median(row[name] for row in timed) for name in timed[0]}
    return medians | {"share": statistics.median(row["adapter_s"] / row["step_s"] for row in timed)}


def verl_share(steps: int, rollouts: int = 2048, replayed: int = 256, tokens: int = 24) -> dict[str, float]:
    """Medians over repeats: seconds of the policy's passes, of advantage and loss, and their share of all of it."""
    words = tokenizer()
    policy = new_model(ModelConfig(), words, 0)
    rows = rollouts + replayed
    mask = torch.ones(rows, tokens, dtype=torch.long)
    rewards = torch.zeros(rows, tokens)
    rewards[:rollouts, -1] = torch.arange(rollouts).remainder(3).eq(0).float()
    groups = [f"g{row // 16}" if row < rollouts else f"r{row}" for row in range(rows)]
    lengths, kinds = numpy.full(rows, tokens), numpy.arange(rows) >= rollouts
    ids = torch.randint(len(words), (rows, tokens + 1))
    actor = SimpleNamespace(clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=3.0, global_batch_info={})
    loss_of = policy_loss("dph_f")
    seen = []
    for _ in range(steps):
        started = time.perf_counter()
        parts = []
        for part in ids.split(256):
            logits = policy(part[:, :-1]).logits.float()
            scored = logits.log_softmax(-1).gather(-1, part[:, 1:, None])[..., 0]
            scored.sum().backward()
            parts.append(scored.detach())
        policy.zero_grad()
        passed = time.perf_counter()
        scored = torch.cat(parts).requires_grad_()
        weights = torch.from_numpy(weights_of(numpy.zeros(rows, int), lengths, kinds, 0.2)[0])
        advantages, _ = partitioned_advantage(rewards, mask, groups, {})
        loss_of(scored.detach() - 0.01, scored, advantages, mask, config=actor, rollout_is_weights=weights)[
            0
        ].backward()
        done = time.perf_counter()
        share = (done - passed) / (done - started)
        seen.append({"passes_s": passed - started, "adapter_s": done - passed, "share": share})
    return {name: statistics.median(row[name] for row in seen) for name in seen[0]}


def main() -> None:
    """Measures both and tells it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=16, help="for TRL; 8 rollouts each, as many stored")
    arguments = parser.parse_args()
    verl, trl = verl_share(max(1, arguments.steps // 2)), trl_share(arguments.steps, arguments.prompts)
    rows = [
        {"engine": "trl", "passes_s": trl["step_s"] - trl["adapter_s"], "adapter_s": trl["adapter_s"]},
        {"engine": "verl", "passes_s": verl["passes_s"], "adapter_s": verl["adapter_s"]},
    ]
    shares = {"TRL": trl["share"], "verl": verl["share"]}
    targets = [Target(f"the {name} adapter's own share of a step", share, 0.05) for name, share in shares.items()]
    tell("adapters", vars(arguments), rows, targets)


if __name__ == "__main__":
    main()
