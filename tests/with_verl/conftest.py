"""What the tests of the real verl share: a base with stored answers on disk, and verl's settings for it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

if importlib.util.find_spec("verl"):
    os.environ.update(
        # verl reads it when it is imported: the way in which a user's run loads the plug-in.
        VERL_USE_EXTERNAL_MODULES="dphlib.integrations.verl.plugin",
        RAY_USAGE_STATS_ENABLED="0",
        # `./run_all.sh test-verl` installs what verl needs, not this package: verl's processes find it here.
        PYTHONPATH=os.pathsep.join(str(Path(__file__).resolve().parents[up]) for up in (2, 1, 0)),
    )

import subprocess

import pytest
from small import policy, save_policy, sum_problems, tokenizer
from stored import SMALL, references

from dphlib.integrations.verl import store as verl_store
from dphlib.partition import Partition

collect_ignore = ["cpu_platform.py", "dry_run.py", "sharded.py"]  # what verl's own processes load; no tests in them


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    return save_policy(tmp_path_factory.mktemp("base"), width=32)


@pytest.fixture(scope="session")
def partition() -> Partition:
    problems = sum_problems(13)
    return Partition(problems[8:], problems[:8], references(policy(), problems[8:]))


@pytest.fixture(scope="session")
def store(base_folder, partition, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("a store")
    verl_store.write_store(partition, base_folder, tokenizer(), folder)
    verl_store.write_prompts(partition.near_perfect, base_folder, tokenizer(), folder)
    return folder


@pytest.fixture(scope="session")
def launch_settings(base_folder, store, repository, tmp_path_factory):
    """verl's settings as the launch script hands them over, for a method: the arguments that Python gets."""
    python = tmp_path_factory.mktemp("tools") / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)

    def settings(method: str = "dph_js", **environment: str) -> list[str]:
        given = {"MODEL": str(base_folder), "STORE": str(store), "DATABASES": str(store), "METHOD": method}
        shown = subprocess.run(
            [str(repository / "docs/verl_8gpu.sh")],
            env={"PATH": os.environ["PATH"], "PYTHON": str(python), **given, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        lines = shown.stdout.splitlines()
        assert lines[:2] == ["-m", "verl.trainer.main_ppo"], lines
        return lines[2:]

    return settings


@pytest.fixture(scope="session")
def configure(launch_settings):
    """verl's whole configuration, composed by its own loader from the launch script's settings and further ones."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    def configuration(*further: str, method: str = "dph_js", small: bool = True):
        settings = [*launch_settings(method), *(SMALL if small else ()), *further]
        with initialize_config_module(config_module="verl.trainer.config", version_base=None):
            config = compose("ppo_trainer", overrides=settings)
        OmegaConf.resolve(config)
        return config

    return configuration
