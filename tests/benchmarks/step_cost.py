"""What a training step of each method costs at the authors' mix: 2,048 RL rows and 256 rehearsal rows.

    python tests/benchmarks/step_cost.py --measure time
    python tests/benchmarks/step_cost.py --measure memory
    python tests/benchmarks/step_cost.py --measure time --own-prompts       each row with its own prompt
    python tests/benchmarks/step_cost.py --measure time --checkpointing     layers made again, as on GPUs
    python tests/benchmarks/step_cost.py --measure packing                  what packed prompts save there

The real `loop.train` on the CPU world's model, one iteration at a time: 128 prompts x 16 rollouts, two optimizer
steps. Every method gets the same prompts, weights and random numbers, hence the same rollouts; the verifier's place is
taken by one under which no group agrees, so that all 2,048 rows are learnt from. Answers have `--answer` tokens each
(the reference run's had 20), or with `--base` as many as that model gives. RKL has its online reference beside it.

Time: in turns; `learn_s` is the reference's pass and the updates, `step_s` the rollouts too. Memory: a process for each
method and measure, see `measuring`; RKL's reference counts, as it does not exist for the others. Packing: updates of
GRPO under gradient checkpointing in seconds of the processor, prompts and answers packed and row by row, and the tokens
that enter the embedding, padding included; an optimizer step learns from whole groups.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import (
    JudgesInTurn,
    Target,
    endless_policy,
    in_child,
    in_turns,
    ratio,
    resident,
    sql_problems,
    tell,
    tensors_peak_mib,
    words,
)

from dphlib.experiment.cost import COST_METHODS
from dphlib.models import tuning
from dphlib.models.load import load_model
from dphlib.partition import Reference
from dphlib.runtime.machine import deterministic
from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.transformers import TransformersSampler
from dphlib.settings.methods import METHOD_CONFIGS
from dphlib.settings.stages import ModelConfig, TrainConfig, TuningConfig
from dphlib.training import loop, packing, scoring

SIZES = {
    "authors": (ModelConfig(), {"prompts": 128, "rollouts": 16, "rehearsal_rows": 256}),
    "tiny": (ModelConfig(32, 64, 2, 2, 2), {"prompts": 4, "rollouts": 4, "rehearsal_rows": 2}),
}
_TIMES = ("sample_s", "reference_s", "update_s", "step_s")
_COUNTS = ("rl_rows", "rehearsal_rows", "policy_tokens", "reference_tokens")


def steps(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """One training step of each method, all from the same weights and with the same rollouts; gives its log row."""
    shape, rows = SIZES[options.size]
    if options.base:
        policy, tokenizer = load_model(options.base)
    else:
        tokenizer = words()
        policy = endless_policy(shape, tokenizer)
    config = TrainConfig(
        iterations=1,
        mini_batches=2,
        whole_groups=options.measure == "packing",
        max_new_tokens=options.answer,
        diagnose_every=0,
        **rows,
    )
    problems = sql_problems(config.prompts + config.rehearsal_rows)
    prompts, rehearsed = problems[: config.prompts], problems[config.prompts :]
    drawn = TransformersSampler(policy, tokenizer).sample(rehearsed, SamplingConfig(1, 1.0, 1.0, options.answer), 1)
    references = [Reference(p, a.token_ids, a.logprobs) for p, (a,) in zip(rehearsed, drawn, strict=True)]
    policy = tuning.prepare(policy, TuningConfig("full", gradient_checkpointing=options.checkpointing))
    initial = deepcopy(policy.state_dict())

    def step(method: str) -> Callable[[], dict[str, Any]]:
        config_of = METHOD_CONFIGS[method]
        base = deepcopy(policy).requires_grad_(False) if config_of.needs_reference else None

        def once() -> dict[str, Any]:
            policy.load_state_dict(initial)
            arguments = (policy, tokenizer, prompts, references, JudgesInTurn(), config_of, config, 0)
            return loop.train(*arguments, base=base)[0]

        return once

    return {method: step(method) for method in ([options.child] if options.child else COST_METHODS)}


def measure_time(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[Target]]:
    cases = steps(options)
    for case in cases.values():
        case()
    logs = in_turns(cases, options.repeats)
    if len({row["rl_rows"] for of_method in logs.values() for row in of_method}) != 1:
        raise AssertionError("the methods did not learn from equally many rollouts")
    learn = {name: [log["reference_s"] + log["update_s"] for log in of] for name, of in logs.items()}
    whole = {name: [log["step_s"] for log in of] for name, of in logs.items()}
    rows = []
    for name, of_method in logs.items():
        row = {"method": name, **{key: of_method[0][key] for key in _COUNTS}}
        row |= {key: median(log[key] for log in of_method) for key in _TIMES} | {"learn_s": median(learn[name])}
        for kind, times in (("learn", learn), ("step", whole)):
            of = ratio(times[name], times["grpo"])
            row |= {f"{kind}_to_grpo": of.median, f"{kind}_low": of.low, f"{kind}_high": of.high}
        rows.append(row)
    targets = []
    for name in ("dph_f", "dph_js"):
        targets.append(Target(f"step of {name} to that of grpo", ratio(whole[name], whole["grpo"]).median, 1.15))
        rkl = ratio(whole["rkl"], whole[name]).median
        targets.append(Target(f"step of rkl, with its reference, to that of {name}", rkl, 1.0, at_most=False))
    return rows, targets


def measure_memory(options: argparse.Namespace, passed_on: list[str]) -> tuple[list[dict[str, Any]], list[Target]]:
    rows = []
    for method in COST_METHODS:
        found = [in_child(__file__, *passed_on, "--child", method, "--count", what) for what in ("resident", "tensors")]
        rows.append({"method": method, **found[0], **found[1]})
    grpo = rows[0]
    for row in rows:
        row |= {f"{what}_to_grpo": row[f"{what}_mib"] / grpo[f"{what}_mib"] for what in ("resident", "tensors")}
    bounded = [row for row in rows if row["method"].startswith("dph")]
    targets = [
        Target(f"peak memory of {row['method']} to that of grpo, {what}", row[f"{what}_to_grpo"], 1.03)
        for row in bounded
        for what in ("resident", "tensors")
    ]
    return rows, targets


@contextmanager
def own_prompts() -> Iterator[None]:
    """Inside, a prompt passes with each of its rows."""
    before = scoring.attends_fully, packing.attends_fully
    scoring.attends_fully = packing.attends_fully = lambda config: False
    try:
        yield
    finally:
        scoring.attends_fully, packing.attends_fully = before


def measure_packing(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[Target]]:
    options.checkpointing, options.child = True, "grpo"
    seen = {"update_cpu_s": 0.0, "tokens": 0, "unique": 0}
    update = loop.update

    def watched(policy: Any, pad: int, optimizer: Any, batch: list[Any], *others: Any) -> Any:
        rows = [row.tokens for row in batch]
        seen["unique"] += sum(map(len, {prompt for prompt, _ in rows})) + sum(len(answer) for _, answer in rows)

        def entered(_: Any, given: Any, __: Any) -> None:
            seen["tokens"] += given[0].numel()

        hook, start = policy.get_input_embeddings().register_forward_hook(entered), time.process_time()
        step = update(policy, pad, optimizer, batch, *others)
        seen["update_cpu_s"] += time.process_time() - start
        hook.remove()
        return step

    (step,) = steps(options).values()

    def packed() -> dict[str, Any]:
        seen.update(dict.fromkeys(seen, 0))
        return step() and dict(seen)

    def apart() -> dict[str, Any]:
        with own_prompts():
            return packed()

    loop.update = watched
    try:
        cases = {"packed": packed, "apart": apart}
        for case in cases.values():
            case()
        found = in_turns(cases, options.repeats)
    finally:
        loop.update = update
    rows = [
        {"prompts": name, **of[0], "update_cpu_s": median(row["update_cpu_s"] for row in of)}
        for name, of in found.items()
    ]
    spent = {name: [row["update_cpu_s"] for row in of] for name, of in found.items()}
    return rows, [
        Target("update with packed prompts to row by row", ratio(spent["packed"], spent["apart"]).median, 1.0),
        Target("tokens of a packed update to unique ones", rows[0]["tokens"] / rows[0]["unique"], 1.1),
    ]


def child(options: argparse.Namespace) -> int:
    """Memory of one method, printed as JSON."""
    (case,) = steps(options).values()
    if options.count == "resident":
        print(json.dumps({"resident_mib": resident(case).peak}))
    else:
        print(json.dumps({"tensors_mib": tensors_peak_mib(case)}))
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", choices=("time", "memory", "packing"), default="time")
    parser.add_argument("--size", choices=SIZES, default="authors")
    parser.add_argument("--answer", type=int, default=20, help="tokens of an answer, at most with --base")
    parser.add_argument("--base", type=Path, help="model folder of a trained base of the CPU world")
    parser.add_argument("--own-prompts", action="store_true", help="pass a prompt with each of its rows")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch; a training job of a run has one")
    parser.add_argument("--child", choices=COST_METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--count", choices=("resident", "tensors"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    deterministic(options.threads)
    with own_prompts() if options.own_prompts else nullcontext():
        if options.child:
            return child(options)
        if options.measure == "time":
            rows, targets = measure_time(options)
        elif options.measure == "packing":
            rows, targets = measure_packing(options)
        else:
            rows, targets = measure_memory(options, sys.argv[1:] if arguments is None else arguments)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    tell("step_cost", settings | {"threads": torch.get_num_threads()}, rows, targets)
    return 0


if __name__ == "__main__":
    sys.exit(main())
