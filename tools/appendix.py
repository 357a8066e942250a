"""The generated blocks of docs/artifact_appendix.md: claims, time, hardware, disk, seeds, variance, licences.

The order and the names of the check-list are those of ACM's artifact appendix. Every number is read: from the committed
reference run's manifest, claims and metrics, from the settings of its profile, from the tables of models and data sets,
and from `run_all.sh` for what set-up takes. `python -m tools.site --write` and `dph reference` put the blocks into the
page; the text around them names no number.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dphlib import __version__
from dphlib.data.sets import DATA_SETS
from dphlib.report.facts import command_text, effect_text, machine_text, minutes, peak_text, read_json
from dphlib.settings.gpu import BASES
from dphlib.settings.profiles import Profile, profile
from tools.readme import times_block, verdict_counts

PAGE = Path("docs", "artifact_appendix.md")
RUN = Path("artifacts", "reference")
_MEASURES = (
    "greedy accuracy, unbiased Pass@k, keep and explore, style entropy, tokens through a reference model a policy token"
)


def page_blocks(root: Path) -> dict[str, str]:
    """The generated blocks of the page by name, from a repository and its reference run.

    Raises RunError naming a file of the reference run that is absent.
    """
    root = Path(root)
    run = root / RUN
    manifest, claims = read_json(run / "manifest.json"), read_json(run / "claims.json")
    asked = manifest.get("asked", {})
    settings = profile(manifest["profile"], asked.get("seeds", ""), asked.get("study_seeds", ""))
    return {
        "checklist": _checklist(root, manifest, claims, settings),
        "requirements": _requirements(root, manifest),
        "times": times_block(run, RUN.as_posix()),
        "claims": _claims(claims),
        "seeds": _seeds(manifest, settings),
        "models": _models(run),
        "data": _data(),
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [" | ".join(map(str, row)) for row in (head, ["---"] * len(head), *rows)]
    return "".join(f"| {line} |\n" for line in lines)


def _set_up(root: Path) -> tuple[float, int]:
    """GiB that the environment takes, as measured, and GiB that set-up asks for."""
    text = (root / "run_all.sh").read_text(encoding="utf-8")
    full, asked = re.search(r"^full_mib=(\d+)", text, re.MULTILINE), re.search(r"local needed=(\d+)", text)
    if not full or not asked:
        raise ValueError("run_all.sh: the lines full_mib=... and local needed=... are read for the artifact appendix")
    return int(full[1]) / 1024, int(asked[1])


def _mib(root: Path, manifest: dict[str, Any]) -> float:
    return sum(entry["size"] for entry in manifest["files"].values()) / 2**20


def _checklist(root: Path, manifest: dict[str, Any], claims: list[dict[str, Any]], settings: Profile) -> str:
    """ACM's check-list (meta-information), one line an entry."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    address, done = project["tool"]["dph"]["repository"], read_json(root / RUN / "metrics/08_claims_and_report.json")
    taken, versions, (space, asked) = minutes(manifest), manifest["versions"], _set_up(root)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdict_counts(claims).items())
    problems = ", ".join(f"{name} {count}" for name, count in settings.world.problems.items())
    notebooks = len(list((root / RUN / "notebooks").glob("[0-9][0-9]_*.ipynb")))
    set_up = f"{taken['set-up']:.1f} min, downloads included" if "set-up" in taken else "not recorded in this run"
    licences = ", ".join(sorted({base.licence for base in BASES.values()}))
    entries = {
        "Algorithm": "DPH-RL (forward KL, JS, alpha), GRPO, DAPO, reverse KL, and controls",
        "Program": f"dphlib {__version__}, Python; {notebooks} notebooks",
        "Compilation": "none",
        "Binary": "none; packages come from the Python package index",
        "Model": f"a Llama of {_parameters(root / RUN):,} parameters, made and trained here; others for GPUs, below",
        "Data set": f"the CPU world, made here from a seed (problems: {problems}); others for GPUs, below",
        "Run-time environment": f"Linux or macOS; recorded with Python {versions['python']}, "
        f"torch {versions['torch']}, transformers {versions['transformers']}, SQLite {versions['sqlite']}",
        "Hardware": f"two CPU cores; recorded on {machine_text(manifest)}",
        "Run-time state": "none to prepare; other load makes it slower and changes no result",
        "Execution": "one command, unattended, interruptible, resumable",
        "Metrics": _MEASURES,
        "Output": f"figures, tables, verdicts with intervals, an HTML report; {len(manifest['files'])} files, "
        f"{_mib(root, manifest):.0f} MiB",
        "Experiments": f"{done['runs']} trained runs, {done['answers']:,} judged answers, {len(claims)} claims "
        f"({counts}), by `{command_text(manifest)}`",
        "How much disk space required (approximately)?": f"{space:.1f} GiB for the environment; set-up "
        f"asks for {asked} GiB",
        "How much time is needed to prepare workflow (approximately)?": set_up,
        "How much time is needed to complete experiments (approximately)?": f"{_run_minutes(taken):.0f} min; "
        "README, Times, says how they were measured",
        "Publicly available?": address or "this copy has no public address",
        "Code licenses (if publicly available)?": str(project["project"]["license"]),
        "Data licenses (if publicly available)?": "the CPU world: as the code; others: below and in THIRD_PARTY.md",
        "Model licenses": f"the CPU world's: as the code; others: {licences}",
        "Workflow automation framework used?": f"papermill {versions['papermill']}, over content-addressed stages",
        "Archived (provide DOI)?": "no",
    }
    return "".join(f"- **{name}** {text}\n" for name, text in entries.items())


def _run_minutes(taken: dict[str, float]) -> float:
    return sum(value for name, value in taken.items() if name != "set-up")


def _parameters(run: Path) -> int:
    return int(read_json(run / "metrics/02_base_and_data.json")["parameters"])


def _requirements(root: Path, manifest: dict[str, Any]) -> str:
    """What a machine needs, beside what the recorded one had."""
    machine, (space, asked) = manifest["machine"], _set_up(root)
    gpus = ", ".join(machine["gpus"]) or "none"
    return _table(
        ("", "needed", "recorded run"),
        [
            ("CPU cores", "2; more run more processes side by side", f"{machine['cores']} ({machine['cpu']})"),
            ("memory", "that of one process for each core", f"{machine['memory_gib']:g} GiB; {peak_text(manifest)} at "
             "the peak of one process"),
            ("disk", f"{asked} GiB free before set-up", f"{space:.1f} GiB environment, {_mib(root, manifest):.0f} MiB "
             "results"),
            ("GPU", "none", gpus),
            ("network", "for set-up only", "none after set-up"),
        ],
    )  # fmt: skip


def _claims(claims: list[dict[str, Any]]) -> str:
    """A row a claim: what a rerun should say, the effect that decided, and how far the seeds lie apart."""
    rows = []
    for claim in claims:
        unit, seeds = claim["unit"], [value for _, value in claim["per_seed"]]
        scale, digits = (100, 1) if unit == "share" else (1, 2)
        spread = f"{scale * min(seeds) + 0.0:.{digits}f} to {scale * max(seeds) + 0.0:.{digits}f}" if seeds else "-"
        text = claim["text"].replace("|", "&#124;")
        rows.append((f"`{claim['id']}`", text, claim["paper_ref"], claim["verdict"], effect_text(claim) or "-", spread))
    head = ("claim", "text", "paper", "expected verdict", "effect [95 % interval]", "single seeds, lowest to highest")
    return _table(head, rows)


def _seeds(manifest: dict[str, Any], settings: Profile) -> str:
    def listed(seeds: Iterable[int]) -> str:
        return ", ".join(map(str, seeds))

    return _table(
        ("what", "seed"),
        [
            ("main runs", listed(manifest.get("seeds") or settings.seeds)),
            ("ablations and studies", listed(settings.ablation_seeds)),
            ("databases and problems of the CPU world", settings.world.seed),
            ("draws of an evaluation, the same for every arm", settings.evaluation.draw_seed),
        ],
    )


def _models(run: Path) -> str:
    ours = ("the CPU world's base", "trained in notebook 02", f"{_parameters(run):,}", "as the code")
    return _table(
        ("model", "commit on the hub", "parameters", "licence"),
        [ours, *((base.name, f"`{base.revision}`" if base.revision else "none verified: to be given by DPH_BASE",
                  f"{base.parameters / 1e9:.2f} billion", base.licence) for base in BASES.values())],
    )  # fmt: skip


def _data() -> str:
    rows = []
    for one in DATA_SETS.values():
        copies = {split.hub.id: split.hub.revision for split in one.splits.values() if split.hub}
        pinned = ", ".join(f"{name} `{commit[:12]}`" if commit else name for name, commit in copies.items()) or "none"
        rows.append((one.title, one.licence, "yes" if one.licence_seen else "**no**", pinned))
    return _table(("data set", "licence", "licence read by us", "copy on the hub"), rows)
