"""What the benchmarks share: stand-ins for what they do not measure, times in turns, peak memory, one way to tell.

Peak memory of a CPU is told by two numbers, each taken in a process of its own:

- resident: the kernel's high-water mark of the process, set back before the measured call. All counts that the user's
  machine must have, the libraries' scratch and what the allocator does not give back included. `getrusage` has the same
  mark but cannot set it back, so its peak may be that of an import.
- tensors: the largest sum of living tensors, from the record that torch's profiler makes of each allocation. Exact, and
  the same in each run: on a CPU what `max_memory_allocated` is on a GPU. It sees neither the matrix library's scratch
  nor Python's own memory.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402
import torch  # noqa: E402
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase  # noqa: E402

from dphlib.models.load import build_tokenizer, new_model  # noqa: E402
from dphlib.runtime.machine import machine, versions  # noqa: E402
from dphlib.settings.stages import ModelConfig, WorldConfig  # noqa: E402
from dphlib.types import Answer, Group, Problem, Verdict  # noqa: E402
from dphlib.world.people_places import corpus  # noqa: E402

# --- Stand-ins -----------------------------------------------------------------------------------


def sql_problems(count: int) -> list[Problem]:
    """Problems with different prompts, as the CPU world asks them; there is no database behind them."""
    prompts: dict[str, None] = {}
    for prompt, _ in corpus(WorldConfig(), random.Random(0)):
        if len(prompts) == count:
            break
        if prompt.startswith("tables"):
            prompts[prompt] = None
    return [Problem(f"p{i}", "train", "sql", prompt, "", None) for i, prompt in enumerate(prompts)]


@cache
def words() -> PreTrainedTokenizerBase:
    """The CPU world's tokenizer."""
    return build_tokenizer(WorldConfig(), corpus_pairs=3000)


class JudgesInTurn:
    """In place of the verifier: every second answer is correct, so no group agrees and every row is learnt from."""

    def groups(self, problems: Sequence[Problem], answers: Sequence[Sequence[Answer]]) -> list[Group]:
        verdicts = Verdict("correct"), Verdict("wrong")
        return [
            Group(problem, tuple(group), tuple(verdicts[i % 2] for i in range(len(group))))
            for problem, group in zip(problems, answers, strict=True)
        ]


def endless_policy(shape: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Random weights that never give the end token, so that every answer has as many tokens as it may.

    One hidden value is the same everywhere: no layer writes to it, every token puts 1 into it but the end token's row,
    whose logit it lowers by hundreds.
    """
    policy = new_model(shape, tokenizer, seed=0).eval()
    with torch.no_grad():
        policy.get_input_embeddings().weight[:, 0] = 1.0
        policy.get_input_embeddings().weight[tokenizer.eos_token_id, 0] = -20.0
        for layer in policy.get_decoder().layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
    return policy


# --- Time ----------------------------------------------------------------------------------------


class Ratio(NamedTuple):
    """Of times taken in turns: median, smallest and largest of the ratios of each turn."""

    median: float
    low: float
    high: float


def in_turns(cases: Mapping[str, Callable[[], dict[str, float]]], repeats: int) -> dict[str, list[dict[str, float]]]:
    """Results of each case, `repeats` of each; another one begins in each turn. Call each once before, to warm up."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    names = list(cases)
    for turn in range(repeats):
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            results[name].append(cases[name]())
    return results


def ratio(ours: Sequence[float], against: Sequence[float]) -> Ratio:
    """
    >>> ratio([2.0, 3.0, 5.0], [1.0, 2.0, 2.0])
    Ratio(median=2.0, low=1.5, high=2.5)
    """
    ratios = [a / b for a, b in zip(ours, against, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios))


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of a call, that of the GPU included where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


# --- Memory --------------------------------------------------------------------------------------


class Resident(NamedTuple):
    """Resident memory of this process in MiB: before a call, and the most while it ran."""

    before: float
    peak: float


def resident(call: Callable[[], Any]) -> Resident:
    """Runs a call and watches the process. Linux only."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is resident now
    before = _status("VmRSS")
    call()
    return Resident(before, _status("VmHWM"))


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(key))
    return int(line.split()[1]) / 1024


def tensors_peak_mib(call: Callable[[], Any]) -> float:
    """The most that tensors took on the CPU that were made in a call, MiB."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    held = peak = 0
    events = (event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def in_child(script: str, *arguments: str) -> dict[str, Any]:
    """The JSON object that a benchmark prints last when it runs in a process of its own.

    There glibc gives a tensor's memory back when the tensor goes, so that `resident` does not count what is left of a
    heap in pieces: by chance up to a tenth more.
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


# --- What is told --------------------------------------------------------------------------------


class Target(NamedTuple):
    """A figure and the bound that it should keep."""

    what: str
    value: float
    bound: float
    at_most: bool = True

    @property
    def held(self) -> bool:
        """
        >>> Target("time, ours to theirs", 1.2, 1.3).held, Target("speed-up", 1.5, 1.7, at_most=False).held
        (True, False)
        """
        return self.value <= self.bound if self.at_most else self.value >= self.bound


def tell(
    benchmark: str,
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    targets: Sequence[Target] = (),
    notes: Sequence[str] = (),
) -> None:
    """Prints a table, the targets and notes, and last everything as one line of JSON, as `recorded.jsonl` keeps it."""
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda x: f"{x:.4g}", na_rep="-"))
    for target in targets:
        sign, word = ("<=" if target.at_most else ">="), ("held" if target.held else "missed")
        print(f"{target.what}: {target.value:.3f} {sign} {target.bound:g}: {word}")
    for note in notes:
        print(note)
    facts = {"benchmark": benchmark, "command": " ".join([f"{benchmark}.py", *sys.argv[1:]])}
    facts |= {"machine": machine(), "versions": versions(), "settings": dict(settings)}
    facts |= {"rows": list(rows), "targets": [{**target._asdict(), "held": target.held} for target in targets]}
    print(json.dumps(facts | {"notes": list(notes)}))
