"""The problems of a profile: the CPU world's, or those of data sets in the same suites; and the databases under them.

Prompts for a pretrained model are in its chat format, those for the CPU world's small one as they stand.

A folder holds `<suite>.json` for each suite and the databases of its SQL problems. For data sets:

1. Golds that do not verify against themselves, and empty gold results, are left out (`data.check`).
2. Prompts longer than `max_prompt_tokens` are left out and counted, as the authors leave out theirs.
3. Databases are linked, not copied, under `.database`, one name for each set and database.

Files of data sets are looked for below the folder that the environment variable DPH_DATA names; without it, sets with
a copy on the hub are read from there.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dphlib.runtime.files import InputError, say, sha256_file, write_json
from dphlib.runtime.machine import cores, derive_seed
from dphlib.settings.profiles import Profile
from dphlib.types import Problem

FOLDER = "DPH_DATA"


def build_problems(settings: Profile, out: Path) -> None:
    """Writes the suites of a profile, and its databases, into `out`.

    Raises:
        FileNotFoundError, data.DataError: a data set is not where it should be, or cannot be read.
    """
    if settings.data is None:
        from dphlib.world.people_places import build_world

        build_world(settings.world, out)
        if settings.pretrained is not None:
            from dphlib.models import pretrained

            pretrained.put_into_chat(out)
        return
    from dphlib.experiment import policies

    tokenizer = policies.load_tokenizer(settings)
    (out / ".database").mkdir()
    for suite, names in settings.data.suites.items():
        problems = [problem for name in names for problem in _linked(name, out / ".database")]
        limit = settings.data.problems.get(suite)
        if limit is not None and limit < len(problems):
            problems = random.Random(derive_seed("problems", suite)).sample(problems, limit)
        prompted = [replace(p, suite=suite, prompt=policies.prompt_text(settings, tokenizer, p)) for p in problems]
        lengths = [len(ids) for ids in tokenizer([p.prompt for p in prompted])["input_ids"]]
        kept = [p for p, n in zip(prompted, lengths, strict=True) if n <= settings.data.max_prompt_tokens]
        if len(kept) < len(prompted):
            say(
                f"{suite}: {len(prompted) - len(kept)} of {len(prompted)} prompts are longer than "
                f"{settings.data.max_prompt_tokens} tokens and left out"
            )
        write_json(out / f"{suite}.json", [problem.to_json() for problem in kept])


def read_suite(folder: Path, name: str, settings: Profile) -> list[Problem]:
    """The problems of a suite that `build_problems` wrote.

    Raises:
        ValueError: no such suite, or one without a problem.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        raise InputError(f"unknown suite {name!r}; known: {', '.join(suites(settings))}")
    problems = [Problem.from_json(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    if not problems:
        raise InputError(f"suite {name!r} has no problem; set its number in the profile's world.problems")
    return problems


def suites(settings: Profile) -> tuple[str, ...]:
    """Names of a profile's suites."""
    return tuple(settings.world.problems if settings.data is None else settings.data.suites)


def database_folder(folder: Path) -> Path:
    """Where the databases of the problems in `folder` are."""
    linked = folder / ".database"
    return linked if linked.is_dir() else folder / "database"


def recipe(settings: Profile) -> dict[str, Any]:
    """What decides the problems: settings, and of local data sets their files and databases."""
    if settings.data is None:
        return {"world": asdict(settings.world)} | ({"chat": True} if settings.pretrained else {})
    from dphlib.data.load import find

    found = [find(name, data_dir=_folder()) for names in settings.data.suites.values() for name in names]
    files = {
        f"{source.suite}/{path.name}": sha256_file(path)
        for source in found
        for path in (*source.files, *([source.tables] if source.tables else []))
    }
    revisions = {source.suite: source.revision for source in found}
    databases = {source.suite: _inventory(source.databases) for source in found if source.databases}
    return {
        "data": asdict(settings.data),
        "base": settings.base and asdict(settings.base),
        "files": files,
        "databases": databases,
        "revisions": revisions,
    }


def _inventory(folder: Path) -> dict[str, list[Any]]:
    """Size and header of each database, which holds its change counter: hashing BIRD's 33 GB would take minutes."""
    found = {}
    for path in sorted(folder.glob("*/*.sqlite")):
        with path.open("rb") as file:
            found[f"{path.parent.name}/{path.name}"] = [path.stat().st_size, file.read(100).hex()]
    return found


def described(settings: Profile, suite: str, count: int) -> str:
    """A suite in words, with licences, for a model card."""
    if settings.data is None:
        return f"the CPU world of dphlib, suite {suite}, {count} problems"
    from dphlib.data.load import lookup
    from dphlib.data.sets import licence_text

    sets = [f"{name} ({licence_text(lookup(name)[0])})" for name in settings.data.suites[suite]]
    return f"{count} problems of {', '.join(sets)}"


def _folder() -> Path | None:
    named = os.environ.get(FOLDER)
    return Path(named) if named else None


def _linked(name: str, databases: Path) -> list[Problem]:
    """The problems of a data set with checked golds; ids, databases and the label `family` carry the set's name."""
    from dphlib.data import load
    from dphlib.data.check import build

    source = load.find(name, data_dir=_folder())
    problems, found = build(source, drop_failing=True, workers=cores())
    if found.repeated:
        say(load.repeated_text(name, found.repeated))
    reasons = [
        (len(found.failing), "golds fail"),
        (len(found.empty), "results are empty"),
        (len(found.text_only), "golds can be matched by their text only"),
    ]
    if left := sum(count for count, _ in reasons):
        say(f"{name}: {left} problems left out, {', '.join(f'{count} {why}' for count, why in reasons if count)}")
    if found.missing:
        say(load.missing_text(found.missing, source))
    linked = []
    for problem in problems:
        db_id = problem.db_id and f"{name}.{problem.db_id}"
        if problem.db_id and db_id and not (databases / db_id).exists():
            (databases / db_id).mkdir()
            there = load.database_path(source, problem.db_id).resolve()
            (databases / db_id / f"{db_id}.sqlite").symlink_to(there)
        meta = {**problem.meta, "family": name}
        linked.append(replace(problem, id=f"{name}/{problem.id}", db_id=db_id, meta=meta))
    return linked
