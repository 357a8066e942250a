"""The processes of `accelerate launch` (or torchrun): joined at the start, and one clear line when one is lost.

    accelerate launch --config_file docs/accelerate/ddp.yaml -m dphlib train --method dph_js --profile gpu80

1. A launcher ends the others by SIGTERM as soon as one has ended. The one that gets to it first then says which was
   lost and what to do, and the rest are silent: they ask the launcher's key-value store who speaks. A process that ends
   by an error of its own speaks in the same way, so an error of all of them is told once.
2. Python runs no signal handler while a process waits for another in a message; a thread on a pipe does.
3. A process whose launcher was killed ends too.

Files are written whole or not at all (`files`), so a process may end at any time. Not here: a process that hangs; it is
given up after `TIMEOUT`. Losses on another machine are named as such, for processes cannot be seen from here.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from datetime import timedelta

from dphlib.runtime.files import RunError, say
from dphlib.runtime.processes import ALONE, Processes

TIMEOUT = timedelta(hours=2)
"""The longest that processes wait for one of them: what the first does alone must be done by then."""
_AGAIN = "run the same command again: it goes on from the last checkpoint, finished stages are kept"
_LOOK_EVERY_S = 1.0
_places: list[tuple[str, int]] = []  # host and process id by rank, once joined


def several() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def sharded() -> bool:
    """Whether the launch configuration asks for FSDP2."""
    return several() and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def join(gpu: bool = False) -> Processes:
    """The processes that a launcher started, connected; `ALONE` without one.

    Args:
        gpu: each computes on a GPU of its own, where the machine has any.

    Raises:
        RunError: a launch configuration that this trainer does not follow, or fewer GPUs than processes.
    """
    if not several():
        return ALONE
    _refuse_other_engines()
    import torch

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if gpu := gpu and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise RunError(
                f"{local + 1} processes on a machine with {torch.cuda.device_count()} GPUs; give "
                "`accelerate launch` as many --num_processes as there are GPUs"
            )
        torch.cuda.set_device(local)
    _watch()
    # Short messages and flags are on the CPU, gradients on the GPU.
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=TIMEOUT)
    processes = Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
    _places[:] = processes.gather((socket.gethostname(), os.getpid()))
    return processes


def leave() -> None:
    """Ends the connection, at the end of a run that went well; nothing without one."""
    if _places:
        import torch

        _places.clear()
        torch.distributed.destroy_process_group()


def _refuse_other_engines() -> None:
    """A configuration that asks for what this trainer does not do must not be followed in part."""

    def asked(name: str) -> bool:
        return os.environ.get(name, "").lower() == "true"

    if asked("ACCELERATE_USE_DEEPSPEED"):
        raise RunError(
            "this trainer shards by FSDP2, not by DeepSpeed; launch it with docs/accelerate/fsdp2.yaml (DeepSpeed's "
            "configuration there is for dphlib.integrations.trl)"
        )
    if asked("ACCELERATE_USE_MEGATRON_LM"):
        raise RunError("this trainer does not run by Megatron-LM; launch it with docs/accelerate/fsdp2.yaml")
    if asked("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION") != "2":
        raise RunError("the launch configuration asks for FSDP 1; set fsdp_version: 2, see docs/accelerate/fsdp2.yaml")
    if (precision := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        raise RunError(
            f"the launch configuration asks for mixed_precision {precision}; number formats are the profile's: set it "
            "to no"
        )


# --- One voice ---


def tell(line: str) -> None:
    """Says a line that ends the run, unless another process has said why already."""
    if speaks():
        say(line)


def speaks() -> bool:
    """Whether this process is the first that has something to say: the launcher's key-value store knows.

    Whoever cannot reach it speaks, for twice is better than never.
    """
    if not several():
        return True
    import torch.distributed

    try:
        store = torch.distributed.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False,
            timeout=timedelta(seconds=5),
        )  # fmt: skip
        return store.add(f"dph/told/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except (KeyError, RuntimeError, ValueError):
        return True


def lost() -> list[int]:
    """Ranks on this machine whose process has ended."""
    import psutil

    ended = []
    for rank, (host, pid) in enumerate(_places):
        if host == socket.gethostname():
            try:
                if psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                    ended.append(rank)
            except psutil.NoSuchProcess:
                ended.append(rank)
    return ended


def loss_message(ranks: list[int]) -> str:
    """What the user reads.

    >>> loss_message([1])[:46]
    'process 1 ended, killed or out of memory as it'
    """
    if ranks:
        names = ", ".join(map(str, ranks))
        what = f"process {names} ended" if len(ranks) == 1 else f"processes {names} ended"
        return f"{what}, killed or out of memory as it seems, and with it the run; {_AGAIN}"
    return f"stopped by the launcher, for a process on another machine ended or somebody stopped the run; {_AGAIN}"


def explain(error: Exception, wait_s: float = 10.0) -> str | None:
    """Why a message between processes failed: which of them is gone. None where all live, so it is another error."""
    if not _places:
        return None
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        if ranks := lost():
            return loss_message(ranks)
        if "onnection" not in str(error):
            return None
        time.sleep(0.1)
    return f"a process on another machine ended ({str(error).splitlines()[0]}); {_AGAIN}"


def _watch() -> None:
    """Starts the thread that ends this process when the launcher says so, or is gone."""
    if threading.current_thread() is not threading.main_thread():
        return  # signals can be set up in the main thread only
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_end_when_told, args=(read, os.getppid()), daemon=True).start()


def _end_when_told(pipe: int, launcher: int) -> None:
    while True:
        ready, _, _ = select.select([pipe], [], [], _LOOK_EVERY_S)
        if ready and signal.SIGTERM in os.read(pipe, 64):
            tell(f"dph: {loss_message(lost())}")
            break
        if os.getppid() != launcher:
            break
    sys.stderr.flush()
    os._exit(128 + signal.SIGTERM)
