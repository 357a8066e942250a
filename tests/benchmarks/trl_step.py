"""A whole GRPO step, rollouts and two updates, beside the same step of TRL's GRPOTrainer on this CPU.

    python tests/benchmarks/trl_step.py

16 prompts x 8 rollouts, a Llama of 0.87 million random weights, the same prompts, learning rate and number of threads.
Equal tokens: the model cannot give its end token (`measuring.endless_policy`), so every answer has `--answer` tokens in
both; this is checked. Every row has an advantage in both: a reward of 1 for every second answer of a group.

In pairs: after each of TRL's steps (two optimizer steps on one batch of rollouts, as `steps_per_generation=2` makes
them) comes one of ours in the same process, and the ratio is taken of each pair. TRL has its defaults but for gradient
checkpointing, which is off, since it would only slow it down. Its time runs from one step's end to the next one's, so
fetching prompts and its own logging count; ours has the making of the optimizer in it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from statistics import median
from typing import Any

import torch
from measuring import JudgesInTurn, Target, endless_policy, ratio, sql_problems, tell, words

from dphlib.runtime.machine import cores
from dphlib.settings.methods import METHOD_CONFIGS
from dphlib.settings.stages import ModelConfig, TrainConfig
from dphlib.training import loop

SHAPES = {"small": ModelConfig(128, 384, 4, 4, 4), "tiny": ModelConfig(32, 64, 2, 2, 2)}
LR = 1e-6
WARM = 2


def pairs(options: argparse.Namespace) -> list[dict[str, float]]:
    """Seconds of TRL's step and of ours, a pair a row, the first ones left out."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = words()
    theirs, policy = (endless_policy(SHAPES[options.size], tokenizer) for _ in range(2))
    problems, answers = sql_problems(options.prompts), options.prompts * options.rollouts
    config = TrainConfig(
        iterations=1,
        prompts=options.prompts,
        rollouts=options.rollouts,
        mini_batches=2,
        rehearsal_rows=0,
        lr=LR,
        max_new_tokens=options.answer,
        diagnose_every=0,
    )
    found: list[dict[str, float]] = []
    drawn: list[int] = []

    def every_second(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        drawn.extend(map(len, completion_ids))
        return [float(index % 2 == 0) for index in range(len(completions))]

    def ours() -> dict[str, Any]:
        arguments = (policy, tokenizer, problems, [], JudgesInTurn(), METHOD_CONFIGS["grpo"], config, len(found))
        (log,) = loop.train(*arguments)
        tokens = round(log["response_tokens"] * log["rl_rows"])
        if not log["rl_rows"] == answers == len(drawn) or not tokens == sum(drawn) == answers * options.answer:
            raise AssertionError(f"unequal work: ours {log['rl_rows']} rows, {tokens} tokens; TRL's answers {drawn}")
        return log

    class InPairs(TrainerCallback):
        def __init__(self) -> None:
            self.since = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % 2:
                return
            ended = time.perf_counter()
            log = ours()
            row = {"trl_s": ended - self.since, "ours_s": time.perf_counter() - ended}
            found.append(row | {f"ours_{key}": log[key] for key in ("sample_s", "update_s")})
            drawn.clear()
            self.since = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            folder,
            per_device_train_batch_size=answers // 2,
            steps_per_generation=2,
            gradient_accumulation_steps=1,
            num_generations=options.rollouts,
            max_completion_length=options.answer,
            learning_rate=LR,
            lr_scheduler_type="constant",
            max_steps=2 * (options.pairs + WARM),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        GRPOTrainer(
            theirs,
            every_second,
            settings,
            Dataset.from_list([{"prompt": p.prompt} for p in problems]),
            processing_class=tokenizer,
            callbacks=[InPairs()],
        ).train()
    return found[WARM:]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="small")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--answer", type=int, default=20, help="tokens of every answer")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args(arguments)
    logging.getLogger("trl").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    found = pairs(options)
    columns = {key: [row[key] for row in found] for key in found[0]}
    rows = [
        {"program": "trl", "step_s": median(columns["trl_s"])},
        {
            "program": "ours",
            "step_s": median(columns["ours_s"]),
            "sample_s": median(columns["ours_sample_s"]),
            "update_s": median(columns["ours_update_s"]),
        },
    ]
    of = ratio(columns["ours_s"], columns["trl_s"])
    note = f"of the pairs: smallest {of.low:.3f}, largest {of.high:.3f}"
    tell("trl_step", vars(options), rows, [Target("step, ours to TRL's, median of pairs", of.median, 1.0)], [note])
    return 0


if __name__ == "__main__":
    sys.exit(main())
