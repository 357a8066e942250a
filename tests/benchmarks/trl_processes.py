"""Two real processes of DPHTrainer against one: do they train the same? Too slow for the tests.

    python tests/benchmarks/trl_processes.py --out FOLDER
    python -m torch.distributed.run --standalone --nproc_per_node 2 tests/benchmarks/trl_processes.py --out FOLDER

The second prints the largest difference between the trained weights, and what each step rehearsed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "with_trl")]

from safetensors.torch import load_file, save_file  # noqa: E402
from small import save_policy  # noqa: E402
from small_trl import export_store, rehearsed  # noqa: E402
from test_trl_trainer import adapted, five_rows, trainable  # noqa: E402

from dphlib.integrations import store  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    if not (out / "base").exists():
        export_store(out / "store", save_policy(out / "base"))
    trained = adapted(out / "base")
    settings = {"gradient_checkpointing": True, "ddp_backend": "gloo"}
    held, processes = store.read(out / "store"), int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        settings.pop("ddp_backend")
    trainer = five_rows(trained, out, held, per_device_train_batch_size=8 // processes, **settings)
    if trainer.accelerator.is_main_process:
        save_file(trainable(trained), out / f"trained-{processes}.safetensors")
        print(f"processes {trainer.accelerator.num_processes}, rehearsal/divergence", *rehearsed(trainer))
        if (out / "trained-1.safetensors").exists():
            one, now = load_file(out / "trained-1.safetensors"), trainable(trained)
            print("largest difference", max(float((now[name] - one[name]).abs().max()) for name in one))
    return 0


if __name__ == "__main__":
    sys.exit(main())
