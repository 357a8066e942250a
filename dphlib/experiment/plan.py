"""What a run will need before anything starts: downloads, disk, GPU memory, hours, from the settings alone.

Memory, in bytes (P weights, L linear weights of the layers, T trained weights, D hidden and I inner size):

    base            2 P in 16 bits; QLoRA 4.127 / 8 L + 2 (P - L)
    trained state   18 T: gradient, fp32 copy and its gradient, two moments (6 T less where `paged_8bit` has them in 8
                    bits); an adapter itself 2 T more
    initial policy  2 P, when it is evaluated itself, and beside a policy that is trained whole
    update          2 N (10 D + 4 I) a layer for the N tokens of a micro-batch, or with gradient checkpointing 2 N D a
                    layer and once the former; three fp32 chunks of 2^25 logits
    sampler         vLLM: its share of the GPU, in pre-sampling nine tenths of what is free; Transformers, never at the
                    time of an update: the cache of `batch_rows` answers and their prompts, which have a quarter of that
                    room, and 40 bytes for each row and entry of the vocabulary

What no smaller batch makes smaller, and `require_memory` asks for:

    an engine       2 P, with vLLM also the keys and values of one longest prompt and answer
    pre-sampling    an engine
    evaluation      an engine of vLLM, the initial policy, and one more that was trained whole
    training        base, trained state, the initial policy beside one that is trained whole, an engine of vLLM that
                    does not sleep

Time: a token step reads the weights once and takes 2 P operations for each row; Transformers adds 2 ms a layer.
Training takes 6 P operations per token, 4 P with an adapter, 2 P more with checkpointing, and 2 P for each scoring; the
prompt of a group is passed once. All at 40 % of the GPU's data sheet, prompts a quarter of their limit long, answers
half of theirs.

Error: no run on a GPU has checked any of this. Leave a fifth of the memory free; hours may be off by a factor of two.
Verification, loading, and what dynamic sampling draws again are not in them. What a CPU profile needs was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal

from dphlib.data.sets import SUITES
from dphlib.runtime.files import InputError, RunError, read_manifest
from dphlib.runtime.machine import gpu_total_gib
from dphlib.settings.gpu import BASES, SMOKE
from dphlib.settings.profiles import Profile
from dphlib.settings.stages import BaseConfig

_NF4_BITS = 4.127  # block scales quantised again
_CHUNK_BYTES = 3 * 4 * 2**25
_CHOOSING_BYTES = 40  # logits, log-probs, sorted and summed for the draw
_VLLM_ROWS = 256  # decoded side by side by default
_EFFICIENCY = 0.4
_LAYER_S = 0.002  # Python, adapters and kernel starts
_KEPT = 3  # checkpoints on disk at a time: two kept, one being written


Action = Literal["pre-sampling", "training", "evaluation"]
"""What asks for a GPU's memory."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU by its maker's data sheet: memory in GiB, dense 16-bit operations and bytes per second; bfloat16 or not."""

    name: str
    memory_gib: float
    flops: float
    bandwidth: float
    bfloat16: bool = True


CARDS = {
    "t4": Card("NVIDIA T4", 15, 65e12, 320e9, bfloat16=False),  # Colab's free one; vLLM is not for it here
    "l4": Card("NVIDIA L4", 24, 121e12, 300e9),
    "h100": Card("NVIDIA H100 SXM", 80, 989e12, 3.35e12),
    "h200": Card("NVIDIA H200", 141, 989e12, 4.8e12),
}
CARD_OF = {"gpu24": "l4", "gpu80": "h100", "paper": "h200"}
"""The card that each profile is meant for."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a profile needs: bytes of each part, hours of pre-sampling, of one run and of its evaluation; main runs."""

    card: Card
    disk: dict[str, float]
    memory: dict[str, float]
    memory_gib: float
    presample_hours: float
    run_hours: float
    evaluation_hours: float
    runs: int

    @property
    def fits(self) -> bool:
        """Whether the memory of the card that the estimate is for suffices."""
        return self.memory_gib <= self.card.memory_gib


def trained_parameters(settings: Profile) -> int:
    """Weights that the profile's tuning trains.

    >>> from dphlib.settings.profiles import profile
    >>> trained_parameters(profile("gpu80"))  # rank 32 on every linear layer of Llama-3.1-8B
    83886080
    """
    base, tuning = settings.base, settings.tuning
    if tuning.kind == "full":
        return base.parameters
    ranks = (sum(base.layer_matrices[name]) for name in tuning.target_modules)
    return base.layers * tuning.rank * sum(ranks)


def plan(settings: Profile, card: str = "") -> Plan:
    """The estimate for a GPU profile; formulae at the module's head.

    Args:
        card: of `CARDS`; "" for the one that the profile is meant for.

    Raises:
        ValueError: a profile of the CPU, whose needs were measured; an unknown card.
    """
    if settings.base is None:
        raise ValueError(f"profile {settings.name} runs on a CPU; what it needs was measured, see `measured`")
    name = card or CARD_OF[settings.name.removesuffix(SMOKE)]
    if name not in CARDS:
        raise InputError(f"unknown card {name!r}; known: {', '.join(CARDS)}")
    gpu, trained, runs = CARDS[name], trained_parameters(settings), len(settings.main_runs())
    memory = _memory(settings, gpu)
    whole = settings.tuning.kind == "full"
    training = [memory[part] for part in memory if part != "initial policy" or whole]
    if settings.backend.program == "transformers":
        training.remove(min(memory["update"], memory["sampler"]))
    evaluation = [(1 + whole) * memory["initial policy"], memory["sampler"]]
    disk = {
        "base": 2.0 * settings.base.parameters,
        "trained policies": runs * 2.0 * trained,
        "checkpoints of a run": _KEPT * 14.0 * trained,
    }
    presampled = [(_problems(settings, "train"), samples) for samples in (settings.presample.k, 1)]
    suites = settings.evaluation.samples.items()
    evaluated = [(_problems(settings, suite), samples) for suite, count in suites for samples in (count, 1)]
    return Plan(
        gpu,
        disk,
        memory,
        max(sum(training), sum(evaluation)) / 2**30,
        _drawing_s(settings, gpu, presampled, settings.train.max_new_tokens) / 3600,
        _run_s(settings, gpu) / 3600,
        _drawing_s(settings, gpu, evaluated, settings.evaluation.max_new_tokens) / 3600,
        runs,
    )


def _memory(settings: Profile, card: Card) -> dict[str, float]:
    base, tuning, train, backend = settings.base, settings.tuning, settings.train, settings.backend
    weights = 2.0 * base.parameters
    quantised = base.linear_parameters if tuning.kind == "qlora" else 0
    tokens = max(train.token_budget, settings.data.max_prompt_tokens + train.max_new_tokens)
    layer = 2 * tokens * (10 * base.hidden_size + 4 * base.intermediate_size)
    carried = base.layers * 2 * tokens * base.hidden_size
    limit = max(train.max_new_tokens, settings.evaluation.max_new_tokens)
    drawing = backend.batch_rows * (1.25 * _cached(base) * limit + _CHOOSING_BYTES * base.vocabulary)
    share = 0.0 if backend.sleep else backend.memory_fraction * card.memory_gib * 2**30
    each = (18 if tuning.kind == "full" else 20) - 6 * bool(tuning.paged_8bit)
    return {
        "base": weights - (2 - _NF4_BITS / 8) * quantised,
        "trained state": each * trained_parameters(settings),
        "initial policy": weights,
        "update": _CHUNK_BYTES + (carried + layer if tuning.gradient_checkpointing else base.layers * layer),
        "sampler": drawing if backend.program == "transformers" else share,
    }


def _cached(base: BaseConfig) -> int:
    """Bytes of a token's keys and values in 16 bits."""
    return 4 * base.kv_heads * base.head_size * base.layers


def least_gib(settings: Profile, action: Action) -> float:
    """GPU memory that an action of a GPU profile needs whatever the size of its batches, GiB; see the module's head."""
    base, vllm = settings.base, settings.backend.program == "vllm"
    parts, engine = plan(settings).memory, 2.0 * base.parameters
    if vllm:
        engine += _cached(base) * settings.backend.max_tokens
    if action == "pre-sampling":
        return engine / 2**30
    if action == "evaluation":
        beside, needed = vllm, parts["initial policy"]
    else:
        beside, needed = vllm and not settings.backend.sleep, parts["base"] + parts["trained state"]
    whole = settings.tuning.kind == "full"
    return (needed + whole * parts["initial policy"] + beside * engine) / 2**30


def require_memory(settings: Profile, action: Action, gib: float | None = None) -> None:
    """Refuses a GPU that cannot hold what no smaller batch makes smaller.

    Never for a profile of the CPU, nor for a base whose shape is not known here.

    Args:
        gib: the GPU's memory; None for this machine's, without a GPU nothing is refused.

    Raises:
        RunError: it cannot; the line names what it has, what is needed and the way out.
    """
    gib = gpu_total_gib() if gib is None else gib
    if gib is None or settings.base is None or settings.base.name not in BASES:
        return
    if (least := least_gib(settings, action)) <= gib:
        return
    ways = "take a smaller profile (gpu24), a smaller base by DPH_BASE, or a larger GPU"
    if action == "training" and settings.tuning.kind == "full":
        ways = "train an adapter (DPH_TUNING=lora), all weights on several GPUs by verl (docs/verl.md), or a larger GPU"
    raise RunError(
        f"profile {settings.name}: {action} needs at least {least:.0f} GiB of GPU memory for {settings.base.name} "
        f"({settings.tuning.kind}), and this GPU has {gib:.0f}; {ways}; dph plan --profile {settings.name} lists what "
        "is needed"
    )


def _problems(settings: Profile, suite: str) -> int:
    """Problems of a suite, by its sets' official numbers of rows."""
    splits = [SUITES[name][0].splits[SUITES[name][1]] for name in settings.data.suites.get(suite, ())]
    count = sum(split.rows for split in splits)
    return min(count, settings.data.problems.get(suite, count))


def _drawing_s(settings: Profile, card: Card, draws: Sequence[tuple[int, int]], limit: int) -> float:
    """Seconds to draw answers of at most `limit` tokens; `draws` are pairs (prompts, samples of each)."""
    base, plain = settings.base, settings.backend.program == "transformers"
    together = settings.backend.batch_rows if plain else _VLLM_ROWS
    steps = sum(ceil(prompts * samples / together) for prompts, samples in draws) * (limit if plain else limit / 2)
    ideal_s = 2 * base.parameters * (1 / card.bandwidth + together / card.flops)
    return steps * (ideal_s / _EFFICIENCY + base.layers * _LAYER_S * plain)


def _run_s(settings: Profile, card: Card) -> float:
    """Seconds of one run, evaluations not included."""
    tuning, train = settings.tuning, settings.train
    prompt, answer = settings.data.max_prompt_tokens / 4, train.max_new_tokens / 2
    explored = train.prompts * (prompt + train.rollouts * answer)
    rehearsed = train.rehearsal_rows * (prompt + answer)
    passes = (6 if tuning.kind == "full" else 4) + 2 * tuning.gradient_checkpointing
    scored = 2 + 2 * (train.importance_cap is not None)
    operations = settings.base.parameters * (passes * (explored + rehearsed) + scored * explored)
    drawing_s = _drawing_s(settings, card, [(train.prompts, train.rollouts)], train.max_new_tokens)
    return train.iterations * (drawing_s + operations / card.flops / _EFFICIENCY)


def to_text(settings: Profile, card: str = "") -> str:
    """The estimate in lines for a terminal."""
    found = plan(settings, card)
    base, revision = settings.base, settings.base.revision
    commit = f"at {revision}" if revision else "commit to be given: DPH_BASE" if revision == "" else "a local folder"
    sets = sorted({name for names in settings.data.suites.values() for name in names})
    way_out = (
        "does not fit on one; take tuning lora or qlora (profile gpu80 or gpu24), or several GPUs by verl "
        "(docs/verl.md)"
    )
    lines = [
        f"profile {settings.name}: {base.name} ({commit}), {base.parameters / 1e9:.2f} billion weights, "
        f"{settings.tuning.kind}, {trained_parameters(settings) / 1e6:.1f} million trained, sampler "
        f"{settings.backend.program}; estimated from the settings, not measured, for one {found.card.name}",
        "",
        *_part("downloads", {base.name: found.disk["base"]}),
        f"  data sets {', '.join(sets)}: from the hub where it has them, else below DPH_DATA (dph data list)",
        *_part("disk", found.disk),
        *_part("GPU memory", found.memory),
        f"  at most {found.memory_gib:.0f} GiB of {found.card.memory_gib:.0f} at a time: "
        + ("fits" if found.fits else way_out),
        f"hours: {found.presample_hours:.1f} of pre-sampling, {found.run_hours:.1f} per run of "
        f"{settings.train.iterations} iterations and "
        f"{found.evaluation_hours:.1f} for its evaluation, "
        f"{(found.run_hours + found.evaluation_hours) * found.runs:.0f} for the {found.runs} main runs "
        f"({len(settings.methods)} methods), one after another on one GPU; ablations come on top",
        "error: no run on a GPU has checked this; leave a fifth of the memory free, hours may be off by a factor of 2",
    ]
    if not found.card.bfloat16:
        lines.append(
            f"{found.card.name} has no bfloat16: the model computes in float16, adapters in float32; take the sampler "
            "transformers (DPH_SAMPLER), and fewer methods (DPH_METHODS) where a session ends after some hours"
        )
    return "\n".join(lines)


def _part(title: str, sizes: dict[str, float]) -> list[str]:
    width = max(map(len, sizes))
    return [f"{title}:", *(f"  {name:<{width}}  {size / 2**30:7.1f} GiB" for name, size in sizes.items())]


def measured(settings: Profile, reference: Path) -> str:
    """What a CPU profile needed in the recorded run.

    Raises:
        RunError: there is no record of this profile.
    """
    manifest, _ = read_manifest(reference)
    if manifest.get("profile") != settings.name:
        raise RunError(
            f"no recorded run of profile {settings.name} in {reference}; run it, or plan the profile cpu or a GPU's"
        )
    peak = max(manifest["peak_gib"], manifest["peak_gib_largest_child"])
    machine, size = manifest["machine"], sum(entry["size"] for entry in manifest["files"].values())
    return (
        f"profile {settings.name}, measured on {machine['cores']} cores of {machine['cpu']}: "
        f"{sum(manifest['seconds'].values()) / 60:.0f} min, peak memory {peak:.1f} GiB of the largest process, results "
        f"{size / 2**20:.0f} MiB, no GPU, no download"
    )


def written_gib(settings: Profile) -> float:
    """Disk that a GPU profile's run writes, 0 for the CPU's; without the base, which goes to the hub's cache."""
    if settings.base is None:
        return 0.0
    return sum(size for name, size in plan(settings).disk.items() if name != "base") / 2**30
