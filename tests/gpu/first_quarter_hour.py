"""For whoever gets a GPU first: does what the tests show on a CPU hold there, and how fast is it?

    python tests/gpu/first_quarter_hour.py                      one NVIDIA GPU of 80 GB or more
    python tests/gpu/first_quarter_hour.py --parts syncs steps  some of it
    python tests/gpu/first_quarter_hour.py --tiny               the same code with tiny shapes on a CPU: a dry run

The base has Llama-3.1-8B's shape and random weights, written once to `--folder`; nothing is downloaded. Each part is a
process of its own. One that fails is recorded with its error, the others go on, and the exit status is 1.

smoke   pre-sampling, training of `dph_f` and its evaluation with the profile `gpu80-smoke`, twice in one process, on
        data sets made here. Random weights solve nothing, so a stand-in judges. The second round must not leave more of
        the GPU in use than the first.
syncs   An adapter, then all weights, are changed three times and handed to vLLM. `gap` is the mean distance of vLLM's
        log-probs of its greedy answers to the trainer's, `moved` what the change did to the trainer's own on the
        answers before it, both in nats per token: gap is to be far smaller. `greedy` is the share of vLLM's greedy
        tokens that are the trainer's. Then memory asleep, awake and after `close`.
packs   Log-probs, and their gradient, of many answers to one long prompt, packed behind it (FlexAttention on a GPU) and
        each in a row of its own.
steps   See `gpu_steps`.

The results go to `first_quarter_hour.json` beside this file; `python -m tools.site --write` puts them into
docs/speed.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from gpu_steps import KINDS, SIZES, Size, counted, make_base, measure, problems_of, product_rate
from measuring import Target, seconds

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data_files import bird, official, write

from dphlib.experiment import policies
from dphlib.experiment.pipeline import Pipeline
from dphlib.models import tuning
from dphlib.models.load import Placement
from dphlib.runtime.files import read_jsonl, say, write_json
from dphlib.runtime.machine import gpu_peak_gib, machine, nvidia_driver, peak_gib, versions
from dphlib.sampling import vllm as vllm_sampler
from dphlib.sampling.protocol import SamplingConfig
from dphlib.settings.environment import profile_from_environment
from dphlib.settings.profiles import Profile
from dphlib.settings.stages import TuningConfig
from dphlib.settings.variants import RunConfig
from dphlib.training import packing
from dphlib.training.scoring import TokenRow, score_rows, scored
from dphlib.types import Answer, Group, Problem, Verdict
from dphlib.verify import Verifier

RECORD = Path(__file__).with_suffix(".json")
RUN = RunConfig("dph_f", "main", 0)
_LEFT_GIB = 0.5  # of CUDA's own, which comes and goes
_TINY_ENGINE = {"enforce_eager": True, "kv_cache_memory_bytes": 2**26, "max_num_seqs": 64, "block_size": 32}


class Found(NamedTuple):
    """What a part found: its table, figures with their bounds, and remarks."""

    rows: list[dict[str, Any]]
    targets: list[Target]
    notes: list[str]


class Machine(NamedTuple):
    """Where it runs."""

    folder: Path
    size: Size
    placement: Placement

    @property
    def on_gpu(self) -> bool:
        return self.placement.device == "cuda"

    @property
    def tokenizer(self) -> Any:
        return policies.load.load_tokenizer(self.folder)

    def engine(self, **options: Any) -> Any:
        """A sampler by vLLM; a tiny one has a tiny cache."""
        small = {} if self.on_gpu else {"engine_options": _TINY_ENGINE}
        shared = {"max_tokens": 1024, "dtype": self.placement.dtype, "memory_fraction": 0.4}
        return vllm_sampler.VllmSampler(self.folder, self.tokenizer, **shared, **options, **small)


def used_gib() -> float:
    """Memory of the GPU that is in use; on a CPU that of living tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**30
    tensors = (one for one in gc.get_objects() if isinstance(one, torch.Tensor))
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values()) / 2**30


def of_vllm() -> int:
    """vLLM's modules that are alive."""
    gc.collect()
    modules = (one for one in gc.get_objects() if isinstance(one, torch.nn.Module))
    return sum(type(one).__module__.startswith("vllm") for one in modules)


# --- The stages of a profile, twice ---------------------------------------------------------------


def judged(self: Verifier, problems: Sequence[Problem], answers: Sequence[Sequence[Answer]]) -> list[Group]:
    """In place of `Verifier.groups`: every other problem is always solved, the rest in one of eight answers."""
    groups = []
    for problem, group in zip(problems, answers, strict=True):
        easy = sum(problem.id.encode()) % 2 == 0
        right = [easy or answer.token_ids[0] % 8 == 0 for answer in group]
        groups.append(Group(problem, tuple(group), tuple(Verdict("correct" if one else "wrong") for one in right)))
    return groups


def smallest(settings: Profile) -> Profile:
    """`gpu80-smoke` once more smaller, for a CPU."""
    evaluation = replace(settings.evaluation, samples=dict.fromkeys(settings.evaluation.samples, 2), step_samples=2)
    return replace(
        settings,
        train=replace(settings.train, max_new_tokens=6, overlong_buffer=2),
        evaluation=replace(evaluation, max_new_tokens=6),
        tuning=replace(settings.tuning, rank=4),
    )


class _SmallEngine(vllm_sampler.VllmSampler):
    """With a tiny cache."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "engine_options": _TINY_ENGINE})


@contextmanager
def as_a_user_sets_it(here: Machine, data: Path) -> Iterator[Profile]:
    """The profile `gpu80-smoke` with this base and these data, as the environment gives it."""
    official(data)
    write(data / "bird/train/train.json", [bird(f"Question {i}?") for i in range(12)])
    environment = {"DPH_BASE": str(here.folder), "DPH_DATA": str(data)}
    with ExitStack() as stack:
        if not here.on_gpu:
            environment |= {"DPH_DEVICE": "cpu"}
            stack.enter_context(patch.object(vllm_sampler, "VllmSampler", _SmallEngine))
        stack.enter_context(patch.dict(os.environ, environment))
        stack.enter_context(patch.object(Verifier, "groups", judged))
        settings = profile_from_environment("gpu80-smoke")
        yield settings if here.on_gpu else smallest(settings)


def smoke(here: Machine) -> Found:
    rows, used = [], []
    with tempfile.TemporaryDirectory() as place, as_a_user_sets_it(here, Path(place) / "data") as settings:
        for number in (1, 2):
            pipeline = Pipeline(Path(place) / f"round-{number}", settings)
            pipeline.partition()
            stages: dict[str, Callable[[], Any]] = {
                "presample": pipeline.presample,
                "train": lambda pipeline=pipeline: pipeline.train_one(RUN),
                "evaluate": lambda pipeline=pipeline: pipeline.evaluate_one(RUN),
            }
            for name, build in stages.items():
                stage = build()
                wall_s = json.loads((stage.path / "manifest.json").read_text())["wall_s"]
                rows.append({"round": number, "stage": name, "wall_s": wall_s})
                if name == "train":
                    log = read_jsonl(stage.path / "train_log.jsonl")[-1]
                    names = ("sample_s", "sync_s", "update_s", "grad_norm", "tis_mean", "sampler_gap")
                    rows[-1] |= {name: log[name] for name in names}
                rows[-1] |= {"used_gib": used_gib(), "modules": of_vllm()}
            used.append(rows[-1]["used_gib"])
            if number == 1:
                parts = pipeline.parts()
                near, far, stored = map(len, (parts.near_perfect, parts.exploration, parts.references))
                notes = [f"D_pef {near}, D_exp {far}, stored answers {stored}"]
    left = Target("memory in use after the second round, over that after the first, GiB", used[1] - used[0], _LEFT_GIB)
    modules = Target("smoke: vLLM's modules alive after a stage", max(row["modules"] for row in rows), 0)
    return Found(rows, [left, modules], notes)


# --- Weights handed to vLLM -----------------------------------------------------------------------


def rows_of(answers: Sequence[Sequence[Answer]]) -> list[TokenRow]:
    return [(answer.prompt_ids, answer.token_ids) for group in answers for answer in group]


@torch.no_grad()
def change(policy: Any, rows: Sequence[TokenRow], pad: int) -> float:
    """Adds noise to what is trained until the answers' log-probs have moved by a tenth of a nat per token, or more.

    Returns:
        How far: the mean distance of a token's log-prob to what it was.
    """
    before, moved, scale = torch.cat(scored(policy, pad, rows)), 0.0, 0.05
    while moved < 0.1:
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * scale * max(float(weight.float().std()), 0.01))
        moved, scale = float((torch.cat(scored(policy, pad, rows)) - before).abs().mean()), 2 * scale
        if not math.isfinite(moved) or scale > 1e6:
            raise RuntimeError(f"noise of scale {scale / 2:g} moved the log-probs by {moved}")
    return moved


@torch.no_grad()
def greedy_share(policy: Any, rows: Sequence[TokenRow]) -> float:
    """Share of the rows' answer tokens that the policy itself would choose, all tokens before being given."""
    same, count = 0, 0
    for prompt, answer in rows:
        ids = torch.tensor([[*prompt, *answer]], device=policy.device)
        chosen = policy(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].argmax(-1)
        same, count = same + int((chosen == ids[0, len(prompt) :]).sum()), count + len(answer)
    return same / count


def syncs_of(kind: str, here: Machine) -> Found:
    config = TuningConfig(kind, rank=here.size.rank, alpha=2 * here.size.rank)  # type: ignore[arg-type]
    policy, tokenizer = tuning.load_policy(here.folder, config, placement=here.placement)
    problems, setting = problems_of(8, here.size.prompt // 4), SamplingConfig(1, 0.0, 1.0, 32)
    pad, before = tokenizer.pad_token_id, used_gib()
    sleeps = kind == "full" and here.on_gpu  # as the profiles have it: `paper` hands the GPU over, `gpu80` shares it
    sampler = here.engine(lora_rank=config.rank if kind == "lora" else None, sleep=sleeps)
    rows: list[dict[str, Any]] = []
    answers = sampler.sample(problems, setting, 0)
    for number in range(4):
        moved = change(policy, rows_of(answers), pad) if number else None
        sync_s = seconds(partial(sampler.sync, policy))
        answers = sampler.sample(problems, setting, 0)
        theirs = torch.tensor([value for (answer,) in answers for value in answer.logprobs])
        gap = float((theirs - torch.cat(scored(policy, pad, rows_of(answers)))).abs().mean())
        row = {"kind": kind, "change": number, "sync_s": sync_s, "gap": gap, "moved": moved}
        rows.append(row | {"greedy": greedy_share(policy, rows_of(answers))})
    again = sampler.sample(problems, setting, 0)
    repeats = [a.token_ids for (a,) in again] == [a.token_ids for (a,) in answers]
    quiet = used_gib()
    with sampler._awake():
        awake = used_gib()
    sampler.close()
    del sampler
    after = used_gib()
    how = "asleep between calls" if sleeps else "awake all the time"
    notes = [
        f"{kind}: GiB in use {before:.2f} before the engine, {quiet:.2f} between calls ({how}), {awake:.2f} in a call, "
        f"{after:.2f} after close; the same greedy answers twice: {'yes' if repeats else 'no'}"
    ]
    last = rows[-1]
    targets = [
        Target(f"{kind}: gap after the third change, to what it moved", last["gap"] / last["moved"], 0.25),
        Target(f"{kind}: memory that an ended engine leaves, GiB", after - before, _LEFT_GIB),
        Target(f"{kind}: vLLM's modules alive after close", of_vllm(), 0),
    ]
    if sleeps:
        targets.append(Target("full: memory in use asleep, to that awake", quiet / awake, 0.75))
    return Found(rows, targets, notes)


def syncs(here: Machine) -> Found:
    lora, full = (syncs_of(kind, here) for kind in ("lora", "full"))
    return Found(lora.rows + full.rows, lora.targets + full.targets, lora.notes + full.notes)


# --- Speed ----------------------------------------------------------------------------------------


def packs(here: Machine) -> Found:
    wide = (4096, 400, 16) if here.on_gpu else (24, 8, 4)
    width, length, count = wide
    config = TuningConfig("lora", rank=here.size.rank, gradient_checkpointing=True)
    policy, tokenizer = tuning.load_policy(here.folder, config, placement=here.placement)
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(4, here.size.base.vocabulary, (width + count * length,), generator=drawn).tolist()
    rows = [(ids[:width], ids[width + i * length :][:length]) for i in range(count)]
    policy.train()
    found, logprobs = [], {}
    for packed in (True, False):
        if here.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with packing.attention(policy, packed), counted(policy) as passed:

            def learn(packed: bool = packed) -> None:
                values = score_rows(policy, tokenizer.pad_token_id, rows, packed=packed).logprobs_B_T
                logprobs[packed] = values.detach()
                values.sum().backward()

            learn()
            tokens, attention = passed[True], policy.config._attn_implementation
            wall_s = seconds(learn)
        found.append({"answers": "packed" if packed else "apart", "attention": attention, "tokens": tokens})
        found[-1] |= {"wall_s": wall_s, "peak_gib": gpu_peak_gib() or peak_gib()}
    apart = float((logprobs[True] - logprobs[False]).abs().max())
    notes = [f"{count} answers of {length} tokens to a prompt of {width}: log-probs differ by at most {apart:.2g} nats"]
    unique = width + count * length
    return Found(found, [Target("packs: tokens passed to unique ones", found[0]["tokens"] / unique, 1.1)], notes)


def steps(here: Machine) -> Found:
    rate = product_rate(here.size.product, here.placement)
    rows = [row for kind in KINDS for row in measure(kind, here.folder, here.placement, here.size, rate)]
    side = here.size.product
    notes = [f"product of two {side} x {side} matrices: {rate / 1e12:.3g} tera-operations a second"]
    notes += [f"{row['kind']} {row['method']}: {row.pop('error')}" for row in rows if "error" in row]
    targets = [
        Target(f"share of the matrix product's rate, lora {row['method']}", row["share"], 0.4, at_most=False)
        for row in rows
        if row["kind"] == "lora" and "share" in row and here.on_gpu
    ]
    return Found(rows, targets, notes)


# --- All of it ------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Machine], Found]] = {"smoke": smoke, "syncs": syncs, "packs": packs, "steps": steps}


def one_part(name: str, here: Machine, out: Path) -> int:
    """Runs a part in this process and writes what it found; `base` writes the base alone."""
    if name == "base":
        make_base(here.folder, here.size.base, here.placement)
        return 0
    found = PARTS[name](here)
    write_json(
        out,
        {
            "rows": found.rows,
            "targets": [{**target._asdict(), "held": target.held} for target in found.targets],
            "notes": found.notes,
            "machine": machine(),
            "versions": versions(),
        },
    )
    return 0


def in_process_of_its_own(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What a part found, or its error; its seconds in either case."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "found.json"
        command = [sys.executable, __file__, "--part", name, "--folder", str(folder), "--out", str(out)]
        say(f"{name}: begins")
        log = Path(place) / "log"
        call = [*command, *(["--tiny"] if options.tiny else [])]
        begun = time.monotonic()
        with log.open("w") as stream:
            failed = subprocess.run(call, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
        taken = time.monotonic() - begun
        found = json.loads(out.read_text()) if out.is_file() else {"rows": [], "targets": [], "notes": []}
        if failed:
            text = log.read_text(errors="replace")
            say(text)
            found["error"] = (text.strip().splitlines() or [f"exit status {failed}"])[-1]
        say(f"{name}: {found.get('error', 'done')}, {taken:.0f} s")
        return {**found, "seconds": taken}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--folder", type=Path, help="where the base is, or is to be written; else a temporary one")
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--part", choices=("base", *PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        driver = nvidia_driver()
        why = f"torch {torch.__version__} shows no GPU" + (f", driver {driver} answers" if driver else "")
        parser.error(f"{why}; --tiny runs the same code on a CPU")
    size = SIZES["tiny" if options.tiny else "8b"]
    placement = Placement("cpu", "float32", "sdpa") if options.tiny else Placement("cuda", "bfloat16", "sdpa")
    if options.part:
        return one_part(options.part, Machine(options.folder, size, placement), options.out)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        base = in_process_of_its_own("base", options, folder)
        if "error" in base:
            return 1
        parts = {name: in_process_of_its_own(name, options, folder) for name in options.parts}
    about = [{key: part.pop(key) for key in ("machine", "versions") if key in part} for part in parts.values()]
    command = " ".join(["first_quarter_hour.py", *(arguments if arguments is not None else sys.argv[1:])])
    facts = {"command": command, **next(filter(None, about), {}), "base_s": base["seconds"], "parts": parts}
    write_json(options.out, {**facts, "driver": nvidia_driver()})
    for name, part in parts.items():
        for target in part["targets"]:
            say(f"{name}: {target['what']}: {target['value']:.3g}, {'held' if target['held'] else 'MISSED'}")
    return int(any("error" in part for part in parts.values()))


if __name__ == "__main__":
    sys.exit(main())
