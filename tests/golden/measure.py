"""Digests and statistics of a run of about a minute: the world, the base, and every method for two iterations.

    python tests/golden/measure.py            # prints them
    python tests/golden/measure.py --write    # the present code's become the expected ones

`tests/test_golden.py` compares them with `numbers.json`. Run it in a fresh interpreter: the instruction set has to be
pinned before torch is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NUMBERS = HERE / "numbers.json"
sys.path.insert(0, str(HERE.parents[1]))
os.environ.update(ATEN_CPU_CAPABILITY="avx2", MKL_ENABLE_INSTRUCTIONS="AVX2", ONEDNN_MAX_CPU_ISA="AVX2")
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"), HF_HUB_OFFLINE="1")

MEASURED_TIMES = ("_s", "_gib")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def of_json(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, default=str).encode())


def weights(folder: Path) -> tuple[str, float]:
    """Digest and mean square of all weights below a folder."""
    from safetensors.numpy import load_file

    tensors = {k: v for path in sorted(folder.rglob("*.safetensors")) for k, v in load_file(path).items()}
    digest = hashlib.sha256(b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors)))
    total = sum(float((value.astype("float64") ** 2).sum()) for value in tensors.values())
    return digest.hexdigest()[:16], total / sum(value.size for value in tensors.values())


def measure(folder: Path) -> dict[str, dict[str, Any]]:
    """Name of a product -> `digest`, and the numbers (`statistics`) that hold on any machine within a tolerance."""
    import pandas as pd

    from dphlib.experiment.pipeline import Pipeline
    from dphlib.runtime.files import read_jsonl
    from dphlib.settings.methods import CONTROL_CONFIGS, METHOD_CONFIGS
    from dphlib.settings.profiles import profile
    from dphlib.settings.variants import RunConfig

    settings = profile("smoke")
    few = dict(settings.world.problems, in_domain=6, cross_domain=4, out_of_domain=4)
    samples = dict.fromkeys(("in_domain", "cross_domain", "out_of_domain"), 4)
    settings = replace(
        settings,
        sft=replace(settings.sft, threads=1),
        world=replace(settings.world, problems=few),
        evaluation=replace(settings.evaluation, samples=samples, steps=()),
    )
    pipeline, found = Pipeline(folder, settings), {}
    suites = {name: [problem.to_json() for problem in pipeline.suite(name)] for name in settings.world.problems}
    found["world"] = {"digest": of_json(suites), "statistics": {name: len(suite) for name, suite in suites.items()}}
    digest, square = weights(pipeline.base().path)
    found["base"] = {"digest": digest, "statistics": {"mean_square": square}}
    groups = read_jsonl(pipeline.presample().path / "groups.jsonl")
    tokens = sum(len(answer["token_ids"]) for group in groups for answer in group["answers"])
    found["presample"] = {"digest": of_json(groups), "statistics": {"tokens": tokens}}
    partition = json.loads((pipeline.partition().path / "partition.json").read_text())
    references = read_jsonl(pipeline.partition().path / "references.jsonl")
    found["partition"] = {"digest": of_json([partition, references]), "statistics": {}}
    for method in (*METHOD_CONFIGS, *CONTROL_CONFIGS):
        run = RunConfig(method, "main", 0)
        log = [
            {name: value for name, value in row.items() if not name.endswith(MEASURED_TIMES)}
            for row in read_jsonl(pipeline.train_one(run).path / "train_log.jsonl")
        ]
        digest, square = weights(pipeline.train_one(run).path)
        found[f"{method}: weights"] = {"digest": digest, "statistics": {"mean_square": square}}
        found[f"{method}: log"] = {"digest": of_json(log), "statistics": {"iterations": len(log)}}
        if method in ("grpo", "dph_js"):
            records = pd.read_parquet(pipeline.evaluate_one(run).path / "records.parquet")
            rows = json.loads(records.to_json(orient="records", double_precision=15))
            found[f"{method}: records"] = {"digest": of_json(rows), "statistics": {"rows": len(rows)}}
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    text = json.dumps(found, indent=1) + "\n"
    if "--write" in sys.argv[1:]:
        NUMBERS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
