"""The machine and the seeds: what a run ran on, and what makes it repeat.

With `pin_kernels` and `deterministic`, one version of the libraries and one number of threads, a run on a CPU gives the
same bits on every x86-64 processor of one maker with AVX2 (MKL computes otherwise on AMD than on Intel). Elsewhere, and
on GPUs, runs agree statistically.
Nothing here imports torch unless it is asked to seed it or to make it deterministic.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

_DRAW_AND_TRAIN = "torch transformers numpy tokenizers peft bitsandbytes vllm"
_VERIFY_AND_PROMPT = "math-verify latex2sympy2-extended sympy sqlglot"
_AROUND = "accelerate datasets matplotlib pandas papermill pyarrow safetensors scipy seaborn"
KEY_PACKAGES = (*_DRAW_AND_TRAIN.split(), *_VERIFY_AND_PROMPT.split())
"""Packages whose versions can change a stage's numbers."""
RECORDED_PACKAGES = (*KEY_PACKAGES, *_AROUND.split())
PINNED = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""Environment variables by which torch and the libraries below it choose their kernels for a CPU."""
_ANSWER_S = 30  # nvidia-smi takes seconds where the driver has to be loaded first


def package_version(name: str) -> str | None:
    """Version of an installed package, from its metadata, without importing it; None where it is absent."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of Python, SQLite and of the installed libraries that this project uses."""
    found = {name: package_version(name) for name in RECORDED_PACKAGES}
    present = {name: version for name, version in found.items() if version is not None}
    return {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version, **present}


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo(entry: str) -> str:
    """An entry of the first processor in Linux' `/proc/cpuinfo`; "" where there is none."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(entry)), "")


def pinned() -> bool:
    """Whether this process computes with AVX2 on every processor that has it; see `pin_kernels`."""
    return platform.machine() == "x86_64" and PINNED.items() <= os.environ.items()


def has_bfloat16() -> bool:
    """Whether this process computes in bfloat16 by instructions of the processor (AVX512-BF16, AMX, or ARM's)."""
    flags = {*_cpuinfo("flags").split(), *_cpuinfo("Features").split()}
    return not pinned() and not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def pin_kernels(*, instructions: bool = True) -> bool:
    """Fixes which kernels this process and those that it starts compute with; to be called before torch is imported.

    bitsandbytes' kernels are those that are installed: on a CPU with AVX512-BF16 it would fetch others from the hub.
    Threads that wait for one another sleep: spinning, on cores that other work shares, makes a step 20 times slower.

    Args:
        instructions: also pin kernels for a CPU to AVX2, so that a newer processor gives the same bits as an older one.

    Returns:
        Whether the instructions are pinned. They are not on ARM, on a processor without AVX2, or where torch, which
        reads the setting once, is loaded already: there results agree with others' statistically, not bit for bit.
    """
    if "bitsandbytes" not in sys.modules:
        sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]  # the import then fails, as if it were absent
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # which it would warn of
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if instructions and not pinned() and "torch" not in sys.modules and "avx2" in _cpuinfo("flags").split():
        os.environ.update(PINNED)
    return pinned()


def machine() -> dict[str, Any]:
    """CPU model, pinned instructions, usable cores, memory in GiB, system, and the GPUs' names where torch is loaded.

    No host or user name: the record is published.
    """
    cpu = _cpuinfo("model name") or platform.processor() or platform.machine()
    torch = sys.modules.get("torch")
    gpus = []
    if torch is not None and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "instructions": "pinned to AVX2" if pinned() else "not pinned",
        "cores": cores(),
        "memory_gib": round(memory / 2**30, 1),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "gpus": gpus,
    }


def peak_gib(*, children: bool = False) -> float:
    """Largest resident memory so far in GiB: of this process, or of the largest of its ended children."""
    who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(who).ru_maxrss * unit / 2**30


def gpu_peak_gib() -> float | None:
    """Largest memory that torch's tensors took on this process's GPU so far, GiB; None without torch or a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated() / 2**30


def gpus() -> list[str]:
    """GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them; [] without torch or a GPU."""
    if not importlib.util.find_spec("torch"):
        return []
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return named[:count] if named else [str(index) for index in range(count)]


def release_gpu() -> None:
    """Gives back the GPU memory of models that this process has finished with, so that another process can have it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def free_gpu_share() -> float:
    """Share of this process's GPU that nobody holds, other processes counted."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return free / total


def nvidia_driver() -> str | None:
    """Version of the NVIDIA driver as `nvidia-smi` reports it; None where there is no such command or it fails."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    asked = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def gpu_total_gib() -> float | None:
    """Memory of this process's GPU, GiB; None without torch or a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / 2**30


def derive_seed(*parts: str | int | float | bool | None) -> int:
    """A seed of 63 bits from labels and numbers, the same in every process and on every machine.

    Each use gets a seed of its own, so that drawing more in one place never shifts another.

    >>> derive_seed("eval", 0, "in_domain") == derive_seed("eval", 0, "in_domain")
    True
    >>> derive_seed("a", 1) == derive_seed("a", "1")
    False
    """
    digest = hashlib.sha256(json.dumps(parts, separators=(",", ":"), allow_nan=False).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seeds `random`, and numpy and torch (all devices) where they are installed.

    torch is imported for it: seeded only when already loaded, a run would depend on the order of its imports.
    """
    random.seed(seed)
    if importlib.util.find_spec("numpy"):
        import numpy

        numpy.random.seed(seed % 2**32)
    if importlib.util.find_spec("torch"):
        import torch

        torch.manual_seed(seed)


def deterministic(threads: int, device: str = "cpu") -> None:
    """Makes torch repeat itself bit for bit on a CPU: `threads` threads, deterministic kernels only.

    The number of threads is part of it, for it decides the order in which sums are added up. On a GPU only the threads
    are set: results there are comparable, not promised equal, and deterministic kernels are the slower ones.

    Args:
        device: where the models compute, as in `models.load.Placement`.

    Raises:
        ValueError: no thread.
    """
    if threads < 1:
        raise ValueError(f"threads = {threads}: at least 1; `cores()` gives {cores()} here")
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(device == "cpu")
    # a guard for debugging; a sixth of sampling's time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
