"""Pass@1 and Pass@8 of the profile lm's base on real questions of Spider dev: could a suite of them lose anything?

    python tests/benchmarks/lm_spider.py --data FOLDER [--problems 64]

FOLDER holds `spider/dev.json` and `spider/database`. Questions are drawn at random from those whose database is there
and whose prompt, schema included, has at most `--tokens` tokens in the model's chat format. Eight answers at T = 1.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import replace
from pathlib import Path

from dphlib import stats
from dphlib.data.load import add_prompts, database_path, find, read
from dphlib.experiment.fresh_answers import answers_of
from dphlib.experiment.pipeline import Pipeline
from dphlib.models.load import chat_prompt, load_tokenizer
from dphlib.settings.profiles import profile

DRAWS = 8


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=1024, help="the longest prompt")
    parser.add_argument("--limit", type=int, default=96, help="tokens per answer")
    parser.add_argument("--profile", choices=["lm", "lm-smoke"], default="lm")
    parser.add_argument("--run", type=Path, help="folder of the run whose base is asked, artifacts/PROFILE without it")
    options = parser.parse_args(arguments)

    settings = profile(options.profile)
    base = Pipeline(options.run or Path("artifacts") / settings.name, settings).base_folder()
    tokenizer = load_tokenizer(base)
    source = find("spider", "dev", data_dir=options.data)
    there = [one for one in read(source).problems if database_path(source, one.db_id).is_file()]
    asked = [replace(one, prompt=chat_prompt(tokenizer, one.prompt)) for one in add_prompts(there, source)]
    lengths = [len(ids) for ids in tokenizer([one.prompt for one in asked], add_special_tokens=False)["input_ids"]]
    short = [one for one, length in zip(asked, lengths, strict=True) if length <= options.tokens]
    chosen = random.Random(0).sample(short, min(options.problems, len(short)))
    settings = replace(settings, evaluation=replace(settings.evaluation, max_new_tokens=options.limit))
    databases = database_path(source, chosen[0].db_id).parents[1]
    frame = answers_of(settings, base, {"base": None}, chosen, databases, DRAWS)
    right = frame[frame["verdict"] == "correct"].groupby("problem_id")["times"].sum()
    correct = [int(right.get(one.id, 0)) for one in chosen]
    passed = {k: 100 * float(stats.pass_at_k([DRAWS] * len(chosen), correct, k).mean()) for k in (1, DRAWS)}
    outcomes = (100 * frame.groupby("verdict")["times"].sum() / frame["times"].sum()).round(1).to_dict()
    print(
        f"{len(there)} questions with a database, {len(short)} of at most {options.tokens} tokens, {len(chosen)} asked"
    )
    print(f"Pass@1 {passed[1]:.1f} %, Pass@{DRAWS} {passed[DRAWS]:.1f} %; verdicts of the answers in %: {outcomes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
