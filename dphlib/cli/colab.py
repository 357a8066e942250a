"""What a notebook needs on Google Colab beyond its packages; its first cell calls this there, and nowhere else.

1. Colab's own torch stays. vLLM, which would bring another one and does not serve the free T4 in these versions, is not
   installed: policies sample by Transformers.
2. A runtime is lost after some hours; what a run has finished is found again where `root` is a folder of Google Drive.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess

SAMPLER = "DPH_SAMPLER"
ON_DRIVE = (
    "to keep what is finished when the runtime ends: from google.colab import drive; drive.mount('/content/drive'), "
    "and root = '/content/drive/MyDrive/dph'"
)


def gpu() -> str:
    """Name and memory of the runtime's first GPU as nvidia-smi says, "" where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.check_output(query, text=True, timeout=30).strip().partition("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return ""


def prepare(found: str | None = None) -> None:
    """Chooses the sampler that Colab can run, and says which profiles this runtime can take.

    Args:
        found: what `gpu` would say; by default it is asked.
    """
    found = gpu() if found is None else found
    if importlib.util.find_spec("vllm") is None:
        os.environ.setdefault(SAMPLER, "transformers")
    if not found:
        print("no GPU in this runtime: profile_name = 'smoke' (minutes) or 'cpu'; for one: Runtime > Change runtime")
        return
    print(
        f"{found}: profile_name = 'gpu24-smoke' shows that all runs, 'gpu24' trains a 1.5B model; memory and hours, by "
        "calculation: !python -m dphlib plan --profile gpu24 --card t4\n"
        "fewer hours: %env DPH_METHODS=grpo,dph_js\n" + ON_DRIVE
    )
