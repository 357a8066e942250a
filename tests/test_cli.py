"""The command line's errors: one line that names the value and the way out, and a status that is not zero."""

from __future__ import annotations

import errno
import functools
import importlib.util
import os
import re
import shlex
import shutil

import pytest
from small import policy, tokenizer

import dphlib
from dphlib.cli import colab
from dphlib.cli import main as cli
from dphlib.models.load import load_model, save_model
from dphlib.settings.methods import CONFIGS
from dphlib.settings.profiles import PROFILES
from dphlib.settings.studies import STUDIES
from dphlib.settings.variants import VARIANTS


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--profile", "gpu9"], "unknown profile 'gpu9'; known: smoke, cpu"),
        (["train", "--method", "ppo"], "unknown method 'ppo'; known: grpo"),
        (["train", "--method", "grpo", "--variant", "x"], "unknown variant 'x'"),
        (["train", "--method", "grpo", "--variant", "k=4"], "means nothing for grpo"),
        (["ablate", "--study", "lr"], "unknown study 'lr'; known: all, controls, eta"),
        (["ablate", "--study", "eta", "--seeds", "x"], "give their number, such as 5, or a list"),
        (["run", "--profile", "smoke", "--studies", "lr"], "unknown study 'lr'"),
        (["run", "--profile", "smoke", "--seeds", "1,1"], "give their number, such as 5, or a list"),
        (["claims", "--source", "nowhere"], "manifest.json is not there"),
        (["report", "--source", "nowhere"], "claims.json is not there"),
        (["replot", "--source", "nowhere"], "no recorded run in nowhere"),
    ],
)
def test_what_a_user_can_mend_is_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if arguments[0] in ("train", "ablate", "run"):
        arguments = [*arguments, "--artifacts", str(tmp_path)]
    assert cli.main(arguments) == 1
    err = capsys.readouterr().err
    assert says in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["rn"], "run"),
        (["run", "--profile", "cup"], "cpu"),
        (["run", "--profile", "Smoke"], "smoke"),
        (["run", "--profile", "smoke", "--only", "04_trian"], "04_train"),
        (["run", "--profile", "smoke", "--only", "ablations"], "07_ablations"),
        (["run", "--profile", "smoke", "--studies", "eta,contrls"], "controls"),
        (["train", "--method", "dhp_js"], "dph_js"),
        (["train", "--method", "grpo-dexp"], "grpo_dexp"),
        (["train", "--method", "dph_js", "--variant", "treshold=7"], "threshold"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_a_misspelt_name_is_told_what_may_have_been_meant(arguments, meant, tmp_path, capsys):
    artifacts = [] if arguments == ["rn"] else ["--artifacts", str(tmp_path)]
    assert cli.main([*arguments, *artifacts]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"; did you mean {meant}?")


def test_a_misspelt_choice_of_the_environment_is_told_too(monkeypatch, capsys):
    for variable, value, meant in (("DPH_TUNING", "qlra", "qlora"), ("DPH_METHODS", "grpo,dph_s", "dph_js")):
        monkeypatch.setenv(variable, value)
        assert cli.main(["plan", "--profile", "gpu24"]) == 1
        assert capsys.readouterr().err.endswith(f"; did you mean {meant}?\n")
        monkeypatch.delenv(variable)


def test_the_version_is_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dph {dphlib.__version__}\n"


def help_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main([*arguments, "--help"])
    assert not left.value.code
    return re.sub(r"[\s│]+", " ", capsys.readouterr().out)


def test_help_lists_what_is_allowed(capsys):
    allowed = {
        "train": [*CONFIGS, *(f"{name}=..." for name in VARIANTS), *PROFILES],
        "run": [*PROFILES, *STUDIES, "hard", "00_kick_the_tires", "08_claims_and_report"],
        "partition": ["train", "in_domain", "sums_train"],
        "plan": ["t4", "h200"],
    }
    for command, names in allowed.items():
        words = help_of(capsys, command)
        assert not [name for name in names if name not in words]


def test_help_has_examples_which_are_commands(capsys, monkeypatch):
    """Each is read by the command that it is an example of."""
    assert set(cli.EXAMPLES) == set(cli.COMMANDS)
    read: list[str] = []

    def stands_in(command):
        @functools.wraps(command)
        def only_reads(*_, **__) -> int:
            read.append(command.__name__)
            return 0

        return only_reads

    shown = {name: help_of(capsys, name) for name in cli.COMMANDS}
    assert "examples: dph run --profile smoke dph plan --profile cpu" in help_of(capsys)
    monkeypatch.setattr("dphlib.data.report.check_folder", lambda *_: read.append("data") or 0)
    monkeypatch.setattr("dphlib.data.report.print_sets", lambda *_: read.append("data") or 0)
    others = {name: stands_in(command) for name, command in cli.COMMANDS.items() if name != "data"}
    monkeypatch.setattr(cli, "COMMANDS", {"data": cli.COMMANDS["data"], **others})
    for name, examples in cli.EXAMPLES.items():
        for example in examples:
            assert example in shown[name]
            program, *words = shlex.split(example)
            assert program == "dph" and cli.main(words) == 0 and read.pop() == name


@pytest.mark.parametrize("error", [KeyError("ours"), ValueError("ours"), FileNotFoundError("ours")])
def test_what_is_a_fault_of_ours_keeps_its_traceback(error, monkeypatch):
    def fails(*_):
        raise error

    monkeypatch.setattr(cli, "profile_from_environment", fails)
    with pytest.raises(type(error), match="ours"):
        cli.main(["plan", "--profile", "smoke"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--profile", "smoke", "--artifacts", "{file}"],
        ["run", "--profile", "smoke", "--artifacts", "{file}/below"],
        ["presample", "--profile", "smoke", "--artifacts", "{file}"],
        ["notebooks", "--out", "{file}"],
        ["notebooks", "--out", "{file}/below"],
        ["partition", "--profile", "smoke", "--export", "{file}/below"],
        ["data", "list", "--data-dir", "{file}"],
        ["claims", "--source", "{file}"],
        ["report", "--source", "{file}/below"],
        ["ablate", "--study", "eta", "--profile", "smoke", "--artifacts", "{file}"],
    ],
    ids=" ".join,
)
def test_a_file_in_a_folders_place_is_one_line_and_is_kept(arguments, tmp_path, monkeypatch, capsys):
    file = tmp_path / "file"
    file.write_text("kept")
    monkeypatch.chdir(tmp_path)
    assert cli.main([argument.format(file=file) for argument in arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dph: {file}") or line.startswith(f"dph: no folder {file}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and file.read_text() == "kept"


@pytest.mark.parametrize("command", [["run", "--artifacts"], ["presample", "--artifacts"]], ids=lambda words: words[0])
def test_a_folder_that_cannot_be_written_is_one_line(command, tmp_path, monkeypatch, capsys):
    def denied(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "mkdir", denied)  # the tests may run as root, whom nothing is denied
    assert cli.main([*command, str(tmp_path / "new"), "--profile", "smoke"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "Permission denied" in line and "make it readable and writable for this user, or choose another" in line


def test_a_full_disk_is_told_before_anything_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    assert cli.main(["run", "--profile", "smoke", "--artifacts", str(tmp_path)]) == 1
    assert "GiB" in capsys.readouterr().err


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, capsys):
    from filelock import FileLock

    (tmp_path / "smoke").mkdir()
    with FileLock(tmp_path / "smoke" / ".lock"):
        assert cli.main(["run", "--profile", "smoke", "--artifacts", str(tmp_path)]) == 1
    assert "another run is writing" in capsys.readouterr().err


def test_a_model_is_saved_and_loaded_as_any_hugging_face_folder(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save_model(policy(), tokenizer(), tmp_path)
    loaded, words = load_model(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([words("question : 1 + 2 answer :")["input_ids"]])
    torch.testing.assert_close(loaded(ids).logits, plain(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path)("a")["input_ids"][0] == words.bos_token_id
    assert (tmp_path / "model.safetensors").is_file()


def test_a_base_of_another_vocabulary_or_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model in"):
        load_model(tmp_path)
    save_model(policy(), tokenizer(), tmp_path)
    bigger = type(tokenizer())(tokenizer_object=tokenizer().backend_tokenizer)
    bigger.add_tokens(["one more"])
    bigger.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another vocabulary"):
        load_model(tmp_path)


def test_on_colab_with_a_gpu_the_sampler_is_one_that_runs_there_and_the_profile_is_named(monkeypatch, capsys):
    monkeypatch.setenv(colab.SAMPLER, "")  # so that it is absent again afterwards
    monkeypatch.delenv(colab.SAMPLER)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    colab.prepare("Tesla T4, 15360 MiB")
    said = capsys.readouterr().out
    assert said.startswith("Tesla T4, 15360 MiB: profile_name = 'gpu24-smoke'") and "drive.mount" in said
    assert os.environ[colab.SAMPLER] == "transformers"
    monkeypatch.setenv(colab.SAMPLER, "vllm")
    colab.prepare("NVIDIA L4, 23034 MiB")
    assert os.environ[colab.SAMPLER] == "vllm", "the user's own choice stays"
