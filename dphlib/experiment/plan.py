"""What a run will need before anything starts: downloads, disk, GPU memory, hours, from the configuration alone.

Memory, in bytes (P weights, L linear weights of the layers, T trained weights):

    base            2 P in 16 bits; QLoRA 4.127 / 8 L + 2 (P - L): NF4, block scales quantised again
    trained state   18 T: gradient, fp32 copy and its gradient, two moments (12 T where `paged_8bit` has them in 8
                    bits); LoRA and QLoRA 2 T more for the adapter
    activations     N tokens of a micro-batch: 2 N (10 D + 4 I) bytes a layer, D hidden and I inner size; with gradient
                    checkpointing 2 N D a layer and once the former
                    where the GPU has no bfloat16, adapters compute in float32: 4 N (6 D + I) more, their inputs
    loss            three fp32 chunks of 2^25 logits
    reference       2 P more for a whole policy: online reference of RKL and JS by definition, else for `kl_to_base`
    sampler         vLLM: 2 P and the cache, 4 K bytes a token and layer, K the width of keys; at least one full row.
                    Transformers: the cache of the N prompt tokens that a batch may have (`sampler.batches`: the bound
                    holds for one sample a prompt and for many), and the larger of two that follow each other: reading
                    the prompts, 8 N (D + I), 12 N (D + I) with adapters in float32, for the widest point of a layer
                    without gradient; or the cache of `batch_rows` answers and `_CHOOSING` bytes for each entry of the
                    vocabulary and row. Where the GPU has no bfloat16, attention to a prompt of W tokens also writes its
                    scores, 12 N H W with H heads: reading takes the larger of them and the layer's. The sampler is not
                    there while the policy learns: the larger of both counts
    evaluation      the initial policy beside the trained one, 2 P, and the sampler: counts where it is more

Time of an iteration: vLLM reads the weights once a token step for 256 rows side by side. Transformers takes a step for
each token of the limit and batch, `_LAYER_S` of Python and kernel starts a layer, and reads what it multiplies with
(QLoRA: 4.5 bytes a weight, unpacked and read again). Training takes 6 P operations a token (whole policy) or 4 P
(adapter), 2 P more with checkpointing; prompts of rollouts and scoring by the trainer 2 P each. All but `_LAYER_S` at
`_EFFICIENCY` of the GPU's sheet; answers of half the limit, prompts of a quarter of theirs. Verification, loading, and
what dynamic sampling draws again are not in it. All of it is an estimate that no run on a GPU has checked; what a CPU
profile needs was measured and is read from the reference run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dphlib.data.sets import SUITES
from dphlib.report.facts import read_json
from dphlib.runtime.files import InputError, RunError
from dphlib.runtime.machine import gpu_total_gib
from dphlib.settings.gpu import BASES, SMOKE
from dphlib.settings.profiles import Profile
from dphlib.settings.stages import BaseConfig

_NF4_BITS = 4.127
_CHUNK_BYTES = 3 * 4 * 2**25
_ROWS = 256  # that vLLM decodes side by side unless told otherwise
_EFFICIENCY = 0.4
_KEPT = 3  # checkpoints on disk at a time: two kept, one being written
_CHOOSING = 40  # bytes an entry: logits, log-probs, sorted and summed for the draw
_LAYER_S = 0.002  # an assumption for Python, adapters and kernel starts on a free runtime's processor


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU by its maker's data sheet: memory in GiB, dense 16-bit operations and bytes a second; bfloat16 or not."""

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
    """What a profile needs; bytes of each part, hours of pre-sampling, of one run and of its evaluation; main runs."""

    card: Card
    downloads: dict[str, float]
    disk: dict[str, float]
    memory: dict[str, float]
    presample_hours: float
    run_hours: float
    evaluation_hours: float
    runs: int

    @property
    def memory_gib(self) -> float:
        return sum(self.memory.values()) / 2**30

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
    gpu = CARDS[name]
    base, tuning, train, backend = settings.base, settings.tuning, settings.train, settings.backend
    trained, whole = trained_parameters(settings), tuning.kind == "full"
    weights = 2.0 * base.parameters
    memory = {"base": weights}
    if tuning.kind == "qlora":
        memory["base"] = _NF4_BITS / 8 * base.linear_parameters + 2 * (base.parameters - base.linear_parameters)
    memory["trained state"] = ((18 if whole else 20) - 6 * bool(tuning.paged_8bit)) * trained
    tokens = max(train.token_budget, settings.data.max_prompt_tokens + train.max_new_tokens)
    layer = 2 * tokens * (10 * base.hidden_size + 4 * base.intermediate_size)
    if not whole and not gpu.bfloat16:
        layer += 4 * tokens * (6 * base.hidden_size + base.intermediate_size)
    carried = 2 * tokens * base.hidden_size
    memory["activations"] = base.layers * carried + layer if tuning.gradient_checkpointing else base.layers * layer
    memory["loss"] = _CHUNK_BYTES
    if whole:
        memory["online reference"] = weights
    if backend.program == "vllm" and not backend.sleep:
        cache = 4 * base.kv_heads * base.head_size * base.layers * backend.max_tokens
        memory["sampler"] = max(weights + cache, backend.memory_fraction * gpu.memory_gib * 2**30)
    if backend.program == "transformers":
        sampling, learning = _sampling_bytes(settings, gpu), memory["activations"] + memory["loss"]
        memory["sampler, beyond the update's"] = max(0.0, sampling - learning)
        memory["evaluation, beyond that"] = max(0.0, weights + sampling - trained * 18 - max(sampling, learning))
    runs = len(settings.main_runs())
    disk = {
        "base": weights,
        "trained policies": float(runs * 2 * trained),
        "checkpoints of a run": float(_KEPT * trained * 14),
    }
    hours = (_presample_hours(settings, gpu), _hours(settings, gpu), _evaluation_hours(settings, gpu))
    return Plan(gpu, {base.name: weights}, disk, memory, *hours, runs)


def require_memory(settings: Profile, gib: float | None = None) -> None:
    """Refuses a GPU that cannot hold what no smaller batch makes smaller: the base and the trained state.

    Nothing is said of a base whose shape is not known here.

    Args:
        gib: the GPU's memory; None for this machine's, without a GPU nothing is said.

    Raises:
        RunError: it cannot.
    """
    gib = gpu_total_gib() if gib is None else gib
    if gib is None or settings.base.name not in BASES:
        return
    needed = plan(settings).memory
    least = (needed["base"] + needed["trained state"]) / 2**30
    if least > gib:
        raise RunError(
            f"profile {settings.name} needs {least:.0f} GiB of GPU memory for {settings.base.name} and its training "
            f"({settings.tuning.kind}) alone, and this GPU has {gib:.0f}; take a smaller profile (gpu24), a smaller "
            f"base by DPH_BASE, or a larger GPU; dph plan --profile {settings.name} lists what is needed"
        )


def _sampling_bytes(settings: Profile, card: Card) -> float:
    """What Transformers holds while it draws, at most, whatever the number of samples a prompt."""
    from dphlib.sampling.transformers import prompt_tokens

    base, rows, longest = settings.base, settings.backend.batch_rows, settings.data.max_prompt_tokens
    limit = max(settings.train.max_new_tokens, settings.evaluation.max_new_tokens)
    prompts = min(rows * longest, max(longest, prompt_tokens(rows, limit)))
    cached = 4.0 * base.kv_heads * base.head_size * base.layers
    answering = cached * rows * limit + _CHOOSING * rows * base.vocabulary
    return cached * prompts + max(reading_bytes(base, prompts, longest, card), answering)


def reading_bytes(base: BaseConfig, tokens: int, longest: int, card: Card) -> float:
    """Activations at the widest point of reading prompts: `tokens` of a batch, `longest` of one, with an adapter."""
    layer = float(tokens * (base.hidden_size + base.intermediate_size))
    # What has no bfloat16 has no flash kernel: scores are written out, in float32, with the mask and after softmax.
    return 8 * layer if card.bfloat16 else 12 * max(layer, float(tokens * base.heads * longest))


def _decode_s(settings: Profile, card: Card, draws: Sequence[tuple[int, int]], limit: int) -> float:
    """Seconds to draw answers of at most `limit` tokens; `draws` are pairs (prompts, samples of each)."""
    base, backend = settings.base, settings.backend
    if backend.program != "transformers":
        rows = sum(prompts * samples for prompts, samples in draws)
        return math.ceil(rows / _ROWS) * limit / 2 * 2 * base.parameters / card.bandwidth / _EFFICIENCY
    quantised = base.linear_parameters if settings.tuning.kind == "qlora" else 0
    read = 4.5 * quantised + 2 * (base.parameters - quantised)
    from dphlib.sampling.protocol import SamplingConfig
    from dphlib.sampling.transformers import batches

    seconds, length = 0.0, settings.data.max_prompt_tokens // 4
    for prompts, samples in draws:
        setting = SamplingConfig(samples, max_new_tokens=limit)
        for batch in batches([length] * prompts, setting, backend.batch_rows):
            compute_s = 2 * base.parameters * len(batch) * samples / card.flops
            seconds += limit * ((read / card.bandwidth + compute_s) / _EFFICIENCY + base.layers * _LAYER_S)
    return seconds


def _problems(settings: Profile, suite: str) -> int:
    """Problems of a suite, by its sets' official numbers of rows."""
    splits = [SUITES[name][0].splits[SUITES[name][1]] for name in settings.data.suites.get(suite, ())]
    count = sum(split.rows for split in splits)
    return min(count, settings.data.problems.get(suite, count))


def _presample_hours(settings: Profile, card: Card) -> float:
    """Hours to draw k answers and one more to every training prompt."""
    problems = _problems(settings, "train")
    draws = [(problems, settings.presample.k), (problems, 1)]
    return _decode_s(settings, card, draws, settings.train.max_new_tokens) / 3600


def _evaluation_hours(settings: Profile, card: Card) -> float:
    """Hours to answer every suite, greedily and sampled."""
    samples = settings.evaluation.samples.items()
    draws = [(_problems(settings, suite), each) for suite, count in samples for each in (count, 1)]
    return _decode_s(settings, card, draws, settings.evaluation.max_new_tokens) / 3600


def _hours(settings: Profile, card: Card) -> float:
    """Hours of one run, evaluations not included."""
    base, tuning, train = settings.base, settings.tuning, settings.train
    rows, limit = train.prompts * train.rollouts, train.max_new_tokens
    answer = limit / 2
    prompt = settings.data.max_prompt_tokens / 4
    tokens = rows * (prompt + answer)
    passes = (6 if tuning.kind == "full" else 4) + 2 * tuning.gradient_checkpointing
    scored = 2 + 2 * (train.importance_cap is not None)
    learnt = tokens + train.rehearsal_rows * (prompt + answer)
    compute_s = base.parameters * (passes * learnt + scored * tokens) / card.flops
    drawing_s = _decode_s(settings, card, [(train.prompts, train.rollouts)], limit)
    return train.iterations * (drawing_s + compute_s / _EFFICIENCY) / 3600


def to_text(settings: Profile, card: str = "") -> str:
    """The estimate in lines for a terminal."""
    found = plan(settings, card)
    base, revision = settings.base, settings.base.revision
    commit = f"at {revision}" if revision else "commit to be given: DPH_BASE" if revision == "" else "a local folder"
    sets = sorted({name for names in settings.data.suites.values() for name in names})
    lines = [
        f"profile {settings.name}: {base.name} ({commit}), {base.parameters / 1e9:.2f} billion weights, "
        f"{settings.tuning.kind}, {trained_parameters(settings) / 1e6:.1f} million trained, sampler "
        f"{settings.backend.program}; estimated from the settings, not measured, for one {found.card.name}",
        "",
        *_part("downloads", found.downloads),
        f"  data sets {', '.join(sets)}: from the hub where it has them, else below DPH_DATA (dph data list)",
        *_part("disk", found.disk),
        *_part("GPU memory", found.memory),
        f"  together {found.memory_gib:.0f} GiB of {found.card.memory_gib:.0f}: "
        + (
            "fits"
            if found.fits
            else "does not fit on one; take tuning lora or qlora (profile gpu80 or gpu24), or several GPUs by verl "
            "(docs/verl.md)"
        ),
        f"hours: {found.presample_hours:.1f} of pre-sampling, {found.run_hours:.1f} a run of "
        f"{settings.train.iterations} iterations and "
        f"{found.evaluation_hours:.1f} for its evaluation, "
        f"{(found.run_hours + found.evaluation_hours) * found.runs:.0f} for the {found.runs} main runs "
        f"({len(settings.methods)} methods), one after another on one GPU; ablations come on top",
    ]
    if not found.card.bfloat16:
        lines.append(
            f"{found.card.name} has no bfloat16: the model computes in float16, adapters in float32; take the sampler "
            "transformers (DPH_SAMPLER), and fewer methods (DPH_METHODS) where a session ends after some hours"
        )
    return "\n".join(lines)


def measured(settings: Profile, reference: Path) -> str:
    """What a CPU profile needed in the recorded run.

    Raises:
        RunError: there is no record of this profile.
    """
    path = reference / "manifest.json"
    manifest = read_json(path) if path.is_file() else {}
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


def _part(title: str, sizes: dict[str, float]) -> list[str]:
    width = max(map(len, sizes))
    return [f"{title}:", *(f"  {name:<{width}}  {size / 2**30:7.1f} GiB" for name, size in sizes.items())]


def written_gib(settings: Profile) -> float:
    """Disk that a GPU profile's run writes, 0 for the CPU's; without the base, which goes to the hub's cache."""
    if settings.base is None:
        return 0.0
    return sum(size for name, size in plan(settings).disk.items() if name != "base") / 2**30


def outside(settings: Profile) -> list[Any]:
    """What a GPU profile's notebooks depend on beside their parameters: the environment's settings, the data's files.

    The base is downloaded here where it is not there yet: without access nothing is begun.

    Raises:
        FileNotFoundError, DataError: a data set is not where it should be.
        RunError: no access to the base.
    """
    if settings.base is None:
        return []
    from dphlib.experiment import policies
    from dphlib.experiment import problems as problem_sets

    found = problem_sets.recipe(settings)
    policies.base_folder(settings)
    return [settings, found, policies.base_recipe(settings)]
