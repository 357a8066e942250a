"""From a profile to what is trained and what samples, and a trained policy on disk and back.

1. The profiles of the CPU compute in fp32 on the CPU, wherever they run; the others on this machine's first GPU.
2. Whole policies are kept in the Hugging Face layout (`model/`), adapters as PEFT has them (`adapter/`).
3. The stored answers of a base that is not trained here are scored again by the policy that is trained, whichever
   program sampled them: their log-probs are those of pi_ref as training computes them, and the divergence starts at 0.

Not here: how a policy is trained (`trainer`), how a model is loaded (`model`), what of it is trained (`tuning`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from dphlib.models import adapters, load, pretrained, tuning
from dphlib.models.load import Placement, choose_placement
from dphlib.partition import Reference
from dphlib.runtime.files import InputError, RunError, append_jsonl
from dphlib.runtime.jobs import WORKERS
from dphlib.runtime.machine import cores, deterministic, free_gpu_share, has_bfloat16, nvidia_driver, release_gpu
from dphlib.sampling.protocol import Sampler, prompt_ids
from dphlib.sampling.transformers import TransformersSampler
from dphlib.settings.profiles import Profile
from dphlib.settings.variants import RunConfig
from dphlib.training import memory
from dphlib.training.scoring import scored
from dphlib.types import Problem

MODEL, ADAPTER = "model", "adapter"
BASE, DEVICE = "DPH_BASE", "DPH_DEVICE"
"""Environment variables that name another base (NAME@COMMIT, or a folder), and `cpu` in a GPU's place."""
_CPU = Placement("cpu", "float32", "sdpa")
_CPU_BFLOAT16 = Placement("cpu", "bfloat16", "sdpa")
_DRIVERS = {"12": 525, "13": 580}
"""Major version of CUDA -> the oldest of NVIDIA's driver for Linux that serves it (CUDA's release notes)."""
_PART = 2**20
_ALONE = 0.9
"""Of a GPU's free memory, for an engine with nothing beside it; the rest is for CUDA graphs and what torch keeps."""


def placement_of(settings: Profile) -> Placement:
    """Where a profile's models compute.

    Raises:
        RunError: a profile for a GPU, and there is none, unless the environment asks for the CPU.
        ValueError: the environment asks for another device.
    """
    if settings.small:
        return _CPU
    on_cpu = _CPU_BFLOAT16 if settings.pretrained is not None and has_bfloat16() else _CPU
    if device := os.environ.get(DEVICE):
        if device != "cpu":
            raise InputError(f"{DEVICE}={device!r}; only cpu can be asked for, without it the first GPU is used")
        return on_cpu
    found = choose_placement()
    if found.device == "cpu" and settings.pretrained is not None:
        return on_cpu
    if found.device == "cpu":
        raise RunError(f"profile {settings.name} needs an NVIDIA GPU and {_no_gpu()}, or take the profile cpu")
    return found


def _no_gpu() -> str:
    """Why torch shows no GPU, and the way out."""
    if (driver := nvidia_driver()) is None:
        return "this machine shows none; run it where `nvidia-smi` lists one"
    found = f"torch {torch.__version__} shows none, although nvidia-smi answers (driver {driver})"
    if (cuda := torch.version.cuda) is None:
        return f"{found}: it is a build for CPUs; install the build for GPUs (pip install -c constraints.txt torch)"
    if (least := _DRIVERS.get(cuda.partition(".")[0])) and int(driver.partition(".")[0]) < least:
        return f"{found}: CUDA {cuda} needs driver {least} or later; update the driver"
    return f"{found}: see what CUDA_VISIBLE_DEVICES hides, and whether the driver is whole (`nvidia-smi -q`)"


def base_folder(settings: Profile) -> Path:
    """The folder of the profile's base model, downloaded where it is not there.

    Raises:
        RunError: no commit is known and none was given, no access, no network, a model that reads fewer tokens than
            the profile needs.
    """
    base = settings.base
    if base.revision is None:
        return Path(base.name)
    if not base.revision:
        raise RunError(
            f"{base.name}: no commit of it could be verified when this was written; give a full commit hash, or a "
            f"folder with the model, by {BASE}=NAME@COMMIT or {BASE}=FOLDER"
        )
    folder, needed = load.fetch(base.name, base.revision), settings.backend.max_tokens
    reads = getattr(AutoConfig.from_pretrained(folder), "max_position_embeddings", needed)
    if reads < needed:  # a model that `settings.gpu` does not know
        raise RunError(
            f"{base.name} reads at most {reads} tokens, profile {settings.name} has up to {needed}; to leave longer "
            f"prompts out, name the model by its folder: {BASE}={folder}"
        )
    return folder


def base_recipe(settings: Profile) -> dict[str, Any]:
    """What tells this base from another; of a folder a hash over three parts of each weight file, not all its GiB."""
    base, weights = settings.base, []
    if base.revision is None:
        for file in sorted(Path(base.name).glob("*.safetensors")):
            size, content = file.stat().st_size, hashlib.sha256()
            with open(file, "rb") as stream:
                for start in (0, size // 2, max(0, size - _PART)):
                    stream.seek(start)
                    content.update(stream.read(_PART))
            weights.append([file.name, size, content.hexdigest()])
    return {"base": base, "weights": weights}


def requirements(settings: Profile) -> dict[str, str]:
    """What a large model's profile needs and finds here, for a reader: device, base, tuning, sampler; {} for the small.

    Raises:
        RunError: no GPU, no vLLM of the right version where it is the sampler, no bitsandbytes for QLoRA.
        MissingFileError, InputError: a pretrained base whose wheel is not installed, or whose file is cut.
    """
    if settings.small:
        return {}
    where, program = placement_of(settings), settings.backend.program
    if program == "vllm":
        from dphlib.sampling.vllm import require_vllm

        program = f"vllm {require_vllm()}"  # type: ignore[assignment]
    if settings.tuning.kind == "qlora" and find_spec("bitsandbytes") is None:
        raise RunError(f'profile {settings.name} tunes by QLoRA, which needs bitsandbytes: pip install "dphlib[gpu]"')
    if settings.pretrained is not None:
        pretrained.find(settings.pretrained)
    base = settings.base or settings.pretrained
    commit = f" at {settings.base.revision}" if settings.base and settings.base.revision else ""
    found = {"computes on": str(where), "base": f"{base.name}{commit}, licence {base.licence}"}
    return found | {"tuning": settings.tuning.kind, "sampler": program}


def weights_of(folder: Path) -> int:
    """Number of weights of the model in a folder, by its configuration; nothing of them is loaded."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).num_parameters()


def load_tokenizer(settings: Profile) -> PreTrainedTokenizerBase:
    """The tokenizer of the profile's base model."""
    return load.load_tokenizer(base_folder(settings))


def judges(settings: Profile) -> int:
    """Worker processes of each verifier: the small model's jobs fill the cores already, the others share them."""
    return 1 if settings.small else max(1, cores() // int(os.environ.get(WORKERS, "1")))


def threads(settings: Profile) -> int:
    """Threads of a job: the cores that it has to itself where a large model computes on a CPU, else one."""
    if settings.small or placement_of(settings).device != "cpu":
        return 1
    return max(1, cores() // int(os.environ.get(WORKERS, "1")))


def prompt_text(settings: Profile, tokenizer: PreTrainedTokenizerBase, problem: Problem) -> str:
    """The problem's prompt, in the base's own chat format where the profile says so."""
    return load.chat_prompt(tokenizer, problem.prompt) if settings.base.chat else problem.prompt


def load_initial(settings: Profile, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The initial policy in `folder`, frozen, and its tokenizer."""
    with _loading(settings):
        policy, tokenizer = load.load_model(folder, placement_of(settings))
    return policy.requires_grad_(False), tokenizer


def load_policy(settings: Profile, folder: Path, seed: int) -> tuple[Any, PreTrainedTokenizerBase]:
    """The policy to be trained as the profile's tuning says, and its tokenizer.

    `seed` is that of an adapter's first weights.
    """
    with _loading(settings):
        return tuning.load_policy(folder, settings.tuning, placement=placement_of(settings), seed=seed)


def save_policy(
    policy: Any,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    settings: Profile,
    run: RunConfig,
    folder: Path,
    data: str,
) -> None:
    """Writes a trained policy below `out`: all its weights, or its adapter with a card.

    Args:
        out: the stage's folder.
        folder: the base it was trained on.
        data: what it was trained on, for the card.
    """
    if settings.tuning.kind == "full":
        load.save_model(policy, tokenizer, out / MODEL)
        return
    method = f"{run.method}, variant {run.variant}: {settings.method_config(run)}"
    card = adapters.Card(method, data, (run.seed,), _describe(settings, folder).licence)
    adapters.save_adapter(policy, out / ADAPTER, _describe(settings, folder), card)


def load_trained(settings: Profile, base: Path, trained: Path | None) -> tuple[Any, PreTrainedTokenizerBase]:
    """What `save_policy` wrote below `trained`; the base itself for None."""
    where = placement_of(settings)
    with _loading(settings):
        if trained and (trained / ADAPTER).is_dir():
            quantization = tuning.quantization_for(where) if settings.tuning.kind == "qlora" else None
            policy, tokenizer = load.load_model(base, where, quantization=quantization)
            return adapters.load_adapter(policy, trained / ADAPTER, _describe(settings, base)), tokenizer
        return load.load_model(trained / MODEL if trained else base, where)


def _loading(settings: Profile) -> AbstractContextManager[None]:
    """Inside, a full memory is an error that says what to change."""
    return memory.advised("loading the model", memory.loading_ways(settings.tuning.kind))


@contextmanager
def sampling(settings: Profile, folder: Path, policy: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[Sampler]:
    """A sampler by the profile's program, made for `policy`; an engine of vLLM ends with the context.

    An engine draws from the base until it is given the policy by `sync`.

    Args:
        folder: the unquantised base, which vLLM loads.
        policy: None to sample from the base itself. vLLM then has the GPU to itself and takes nine tenths of what is
            free there (its default: 0.92 of an empty one). The more answers it holds at a time, the sooner it is done.

    Raises:
        RunError: out of memory, here or inside the context, with the settings to change.
    """
    backend = settings.backend
    advised = memory.advised("drawing answers", memory.sampling_ways(settings.train, backend.program))
    if backend.program == "transformers":
        if policy is None:
            policy, _ = load_initial(settings, folder)
        with advised:
            yield TransformersSampler(policy, tokenizer, backend.batch_rows)
        return
    from dphlib.sampling.vllm import VllmSampler

    release_gpu()  # vLLM takes its share of what is free
    where = placement_of(settings)
    alone = policy is None and where.device != "cpu"
    with memory.advised("starting vLLM", memory.engine_ways(None if alone else backend.memory_fraction)):
        engine = VllmSampler(
            folder,
            tokenizer,
            lora_rank=settings.tuning.rank if hasattr(policy, "peft_config") else None,
            max_tokens=backend.max_tokens,
            dtype=where.dtype,
            memory_fraction=_ALONE * free_gpu_share() if alone else backend.memory_fraction,
            sleep=backend.sleep and policy is not None,
            # on a CPU compiling takes minutes and a compiler, and saves little
            engine_options={"enforce_eager": True} if where.device == "cpu" else None,
        )
    try:
        with advised:
            yield engine
    finally:
        engine.close()


def rescores(settings: Profile) -> bool:
    """Whether stored answers need the log-probs of the policy that is trained.

    Not on the CPU profiles, where the policy's own weights sampled them with the same kernels. On a GPU vLLM may have
    sampled them, or a decoding kernel that rounds otherwise, and the divergence starts at 0 only after this.
    """
    return not settings.small or settings.backend.program != "transformers" or settings.tuning.kind == "qlora"


def rescored(
    settings: Profile, policy: Any, tokenizer: PreTrainedTokenizerBase, references: Sequence[Reference]
) -> list[Reference]:
    """The stored answers with the log-probs of `policy`, which is still the initial one; see `rescores`."""
    if not rescores(settings):
        return list(references)
    prompts = prompt_ids(tokenizer, [reference.problem for reference in references])
    rows = [(prompt, reference.token_ids) for prompt, reference in zip(prompts, references, strict=True)]
    logprobs = scored(policy, tokenizer.pad_token_id, rows, 2 * settings.train.token_budget)
    return [replace(r, logprobs=tuple(row_T.tolist())) for r, row_T in zip(references, logprobs, strict=True)]


def build_references(out: Path, settings: Profile, folder: Path, references: Sequence[Reference]) -> None:
    """Writes the stored answers to `references.jsonl` in `out`, with the log-probs of the base as it is trained.

    Args:
        out: folder of the stage.
        folder: the base, which is loaded here, in 4 bits for QLoRA, and given up again.
    """
    deterministic(threads(settings), placement_of(settings).device)
    policy, tokenizer = load_policy(settings, folder, 0)
    for reference in rescored(settings, policy, tokenizer, references):
        append_jsonl(out / "references.jsonl", reference.to_json())
    del policy
    release_gpu()


def _describe(settings: Profile, folder: Path) -> adapters.Base:
    base, given = settings.base, settings.pretrained
    if given is not None:
        name = f"{given.name}-cpu-world"
        return adapters.describe_base(folder, given.licence, name=name)
    if base is None:
        return adapters.describe_base(folder, "apache-2.0", name="cpu-world")
    return adapters.describe_base(folder, base.licence, name=base.name, revision=base.revision)
