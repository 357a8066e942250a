"""Two real processes of DPHTrainer against one: do they train the same? Too slow for the tests.

    python tests/benchmarks/trl_processes.py --out FOLDER
    python -m torch.distributed.run --standalone --nproc_per_node 2 tests/benchmarks/trl_processes.py --out FOLDER

The second prints the largest difference between the trained weights, and what each step rehearsed. `--zero 2` or
`--zero 3` at the end of it has the processes share the training by DeepSpeed, which has to be installed beside; on a
CPU with DS_ACCELERATOR=cpu, and it compiles a helper first.
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

AUTOMATIC = dict.fromkeys(
    ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto"
)


def whole(trained, zero: int) -> dict:
    """The trained weights; ZeRO 3 keeps a part of each in every process."""
    if zero < 3:
        return trainable(trained)
    from deepspeed import zero as weights_apart

    with weights_apart.GatheredParameters([weight for weight in trained.parameters() if weight.requires_grad]):
        return trainable(trained)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--zero", type=int, choices=(0, 1, 2, 3), default=0, help="stage of ZeRO")
    asked = parser.parse_args()
    out = asked.out
    if not (out / "base").exists():
        export_store(out / "store", save_policy(out / "base"))
    trained = adapted(out / "base")
    held, processes = store.read(out / "store"), int(os.environ.get("WORLD_SIZE", "1"))
    settings = {"gradient_checkpointing": asked.zero < 3}  # see docs/trl.md
    if processes > 1:
        settings["ddp_backend"] = "gloo"
    if asked.zero:
        stage = {"stage": asked.zero}
        settings["deepspeed"] = {"zero_optimization": stage, "zero_allow_untested_optimizer": True, **AUTOMATIC}
    trainer = five_rows(trained, out, held, per_device_train_batch_size=8 // processes, **settings)
    weights = whole(trained, asked.zero)
    if trainer.accelerator.is_main_process:
        if processes == 1:
            save_file(weights, out / "trained-1.safetensors")
        print(f"processes {trainer.accelerator.num_processes}, rehearsal/divergence", *rehearsed(trainer))
        if (out / "trained-1.safetensors").exists():
            one = load_file(out / "trained-1.safetensors")
            print(f"{type(trainer.model_wrapped).__name__}: largest difference", end=" ")
            print(max(float((weights[name] - one[name]).abs().max()) for name in one))
    return 0


if __name__ == "__main__":
    sys.exit(main())
