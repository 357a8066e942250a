"""Bias, variance, pull, bytes and time of the estimators of D_f, on a base and on policies that drifted from it.

    python tests/benchmarks/estimators.py --run artifacts/cpu
    python tests/benchmarks/estimators.py --base BASE --policy grpo=FOLDER --references references.jsonl --json out.json

Stored answers are drawn anew from the base `--redraws` times, to the same prompts of D_pef; they are not verified.
Prints one table per policy, divergence and K; the columns are those of `lessons.estimators.measure`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pandas as pd
import torch

from dphlib.lessons.categorical import named
from dphlib.lessons.estimators import measure
from dphlib.models.load import load_model
from dphlib.partition import Reference
from dphlib.runtime.files import read_jsonl
from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.transformers import TransformersSampler

DTYPES = {"float16": torch.float16, "float32": torch.float32}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, help="a finished run folder: its base, stored answers, grpo and dph_f seed 0"
    )
    parser.add_argument("--base", type=Path, help="model folder of the initial policy")
    parser.add_argument("--policy", action="append", default=[], help="NAME=FOLDER of a policy; may be repeated")
    parser.add_argument("--references", type=Path, help="references.jsonl of the partition")
    parser.add_argument("--divergence", nargs="+", default=["forward_kl", "js"], help="such as js or alpha_0.5")
    parser.add_argument("--k", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of the stored log-probs")
    parser.add_argument("--prompts", type=int, default=16, help="of D_pef; rows of a mini-batch")
    parser.add_argument("--redraws", type=int, default=64)
    parser.add_argument("--answers", type=int, default=4, help="stored answers that mean_of_answers takes")
    parser.add_argument("--top-p", type=float, default=1.0, help="of the redraws")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write everything there too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    base_folder, policies, references_file = _places(parser, options)

    base, tokenizer = load_model(base_folder)
    base.requires_grad_(False)
    references = [Reference.from_json(row) for row in read_jsonl(references_file)]
    problems = [reference.problem for reference in references[: options.prompts]]
    prompts = tokenizer([problem.prompt for problem in problems])["input_ids"]
    setting = SamplingConfig(options.redraws, 1.0, options.top_p, options.max_new_tokens)
    answers = TransformersSampler(base, tokenizer).sample(problems, setting, options.seed)
    draws = [
        [(prompt, of_prompt[m].token_ids) for prompt, of_prompt in zip(prompts, answers, strict=True)]
        for m in range(options.redraws)
    ]
    tables = []
    for policy_name, folder in policies.items():
        policy, _ = load_model(folder)
        for name in options.divergence:
            for k in options.k:
                table = measure(
                    base,
                    policy,
                    draws,
                    named(name),
                    k=k,
                    answers=options.answers,
                    dtype=DTYPES[options.dtype],
                    pad_token_id=tokenizer.pad_token_id,
                    top_p=options.top_p,
                )
                facts = {"policy": policy_name, "divergence": name, "k": k, **table.attrs}
                print(", ".join(f"{key} {value}" for key, value in facts.items()))
                print(table.to_string(index=False, float_format=lambda x: f"{x:.4g}"), flush=True)
                tables.append(table.assign(**facts))
    if options.json:
        settings = {key: value for key, value in vars(options).items() if isinstance(value, int | float | str | list)}
        rows = json.loads(pd.concat(tables).to_json(orient="records"))
        options.json.write_text(json.dumps({"settings": settings, "estimators": rows}, indent=1))
    return 0


def _places(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[Path, dict[str, Path], Path]:
    """Folders of base and policies, and the file of stored answers: those named, or those of a run."""
    if options.run:

        def newest(pattern: str) -> Path:
            found = sorted((options.run / "stages").glob(pattern), key=lambda path: path.stat().st_mtime)
            if not found:
                parser.error(f"no {pattern} in {options.run / 'stages'}: run ./run_all.sh first")
            return found[-1]

        policies = {name: newest(f"train-{name}-main-seed0-*") / "model" for name in ("grpo", "dph_f")}
        return newest("base-*"), policies, newest("partition-train-*") / "references.jsonl"
    if not (options.base and options.policy and options.references):
        parser.error("give --run, or --base, --policy and --references")
    return options.base, {n: Path(f) for n, _, f in (p.partition("=") for p in options.policy)}, options.references


if __name__ == "__main__":
    sys.exit(main())
