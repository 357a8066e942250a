"""The way of a row through the real verl, up to its first training step: data set, agent loops, trainer, engine."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import policy, tokenizer

from dphlib.integrations.verl.store import EXPLORE_LOOP, REPLAY_LOOP
from dphlib.runtime.files import RunError

pytestmark = pytest.mark.verl


@pytest.fixture(scope="module")
def batches(configure, base_folder):
    """The batches of a training, drawn as verl's trainer draws them."""
    from torchdata.stateful_dataloader import StatefulDataLoader
    from transformers import AutoTokenizer
    from verl.trainer.ppo.utils import create_rl_dataset, create_rl_sampler
    from verl.utils.dataset.rl_dataset import collate_fn

    data = configure().data
    dataset = create_rl_dataset(data.train_files, data, AutoTokenizer.from_pretrained(base_folder), None)
    loader = StatefulDataLoader(
        dataset, data.train_batch_size, collate_fn=collate_fn, sampler=create_rl_sampler(data, dataset), drop_last=True
    )
    return list(loader)


def test_every_batch_has_its_share_of_both_sets_and_all_prompts_come_once(batches, partition):
    from verl.utils import tensordict_utils as tu

    assert len(batches) == 2  # 8 prompts of D_exp, 4 a step
    explored = []
    for batch in batches:
        # evenly spread, so that each of verl's agent loop workers gets its share of the rollouts
        assert list(batch["agent_name"]) == [EXPLORE_LOOP, REPLAY_LOOP] * 3 + [EXPLORE_LOOP]
        assert list(batch["__rollout_n__"]) == [4, 1] * 3 + [4]
        explored += [info["problem_id"] for info in batch["extra_info"][::2]]
        assert len(tu.get_tensordict(dict(batch))) == 7  # the form in which verl hands them on
    assert sorted(explored) == sorted(problem.id for problem in partition.exploration)
    stored = {reference.problem.id: reference for reference in partition.references}
    for info in batches[0]["extra_info"][1::2]:
        reference = stored[info["problem_id"]]
        assert tuple(info["answer_ids"]) == reference.token_ids
        assert info["answer_logprobs"] == pytest.approx(reference.logprobs)
        assert info["prompt_ids"] == tokenizer()(reference.problem.prompt)["input_ids"]


class Client:
    """Stands in for the inference server: answers at once, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    async def generate(self, request_id, *, prompt_ids, sampling_params, **_):
        from verl.workers.rollout.replica import TokenOutput

        self.asked.append(prompt_ids)
        return TokenOutput(token_ids=[5, 6], log_probs=[-1.0, -2.0], extra_fields={"min_global_steps": 0})


def run_loop(config, row, client):
    """A row through verl's agent loop worker, as far as the loop's own output."""
    from verl.experimental.agent_loop import AgentLoopWorker

    class Worker(AgentLoopWorker):
        async def _agent_loop_postprocess(self, output, validate, **kwargs):
            return output

    async def run():
        worker = Worker(config, client)
        trajectory = {"step": 3, "sample_index": 0, "rollout_n": 0, "validate": False}
        fields = {**row, "uid": "u", "session_id": 0, "global_steps": 3}
        return await worker._run_agent_loop({}, trajectory, trace=False, **fields)

    return asyncio.run(run())


def row_of(batch, place):
    return {name: values[place] for name, values in batch.items() if name not in ("dph_replayed", "__rollout_n__")}


def test_a_stored_answer_is_replayed_with_its_reference_log_probs_and_no_model_is_asked(configure, batches, partition):
    client, row = Client(), row_of(batches[0], 1)
    fields = run_loop(configure(), row, client).as_dict()
    (reference,) = (r for r in partition.references if r.problem.id == row["extra_info"]["problem_id"])
    assert client.asked == []
    assert fields["responses"].tolist() == list(reference.token_ids) and fields["response_mask"].all()
    torch.testing.assert_close(fields["rollout_log_probs"], torch.tensor(reference.logprobs))
    assert fields["rm_scores"].sum() == 0
    assert fields["extra_fields"]["min_global_steps"] == fields["extra_fields"]["max_global_steps"] == 2


def test_a_rollout_begins_with_the_stored_ids_of_the_prompt(configure, batches):
    client, row = Client(), row_of(batches[0], 0)
    output = run_loop(configure(), row, client)
    assert client.asked == [row["extra_info"]["prompt_ids"]] == [output.prompt_ids]
    assert (output.response_ids, output.response_logprobs) == ([5, 6], [-1.0, -2.0])
    # rows of one batch must have the same fields, or verl's storage drops some
    replayed = run_loop(configure(), row_of(batches[0], 1), client)
    assert set(replayed.as_dict()) - {"rm_scores"} == set(output.as_dict())


def test_a_run_that_would_not_rehearse_ends_before_a_model_is_loaded(configure, base_folder):
    from transformers import AutoTokenizer
    from verl.trainer.ppo.utils import create_rl_dataset

    data = configure("actor_rollout_ref.actor.policy_loss.loss_mode=vanilla").data
    with pytest.raises(RunError, match="loss_mode is 'vanilla'"):
        create_rl_dataset(data.train_files, data, AutoTokenizer.from_pretrained(base_folder), None)


@pytest.fixture(scope="module")
def dry_run(launch_settings, tmp_path_factory) -> Path:
    """All of verl but the inference server and the delivery of weights to it, see dry_run.py: the file of metrics."""
    folder = tmp_path_factory.mktemp("dry run")
    out = folder / "metrics.jsonl"
    environment = {
        **os.environ,
        "VERL_USE_EXTERNAL_MODULES": "cpu_platform,dphlib.integrations.verl.plugin",
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",  # the engine is registered for it; the platform says where tensors lie
        "RAY_AUTH_MODE": "disabled",  # or Ray keeps a token in the home folder
        "OMP_NUM_THREADS": "1",
        "VERL_FILE_LOGGER_ROOT": str(folder),
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("dry_run.py")), str(out), *launch_settings("sft_rehearsal")],
        env=environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return out


def test_a_dry_run_trains_two_steps_and_its_first_gradients_are_ours(dry_run):
    from dry_run import expected_norm

    first, second = (json.loads(line) for line in dry_run.read_text().splitlines())
    batches = json.loads(dry_run.with_suffix(".rows").read_text())
    assert len(batches) == 2 and [sum(row["replayed"] for row in rows) for rows in batches] == [2, 1]
    # the policy still is the base, so -log pi_theta/pi_ref is 0 on every stored token that is scored in its place
    assert first["actor/rehearsal_loss"] == pytest.approx(0, abs=1e-5)
    assert first["actor/ppo_kl"] == pytest.approx(0, abs=1e-5)
    assert first["actor/grad_norm"] == pytest.approx(expected_norm(batches, policy()), rel=1e-3)
    tokens = [sum(len(row["answer"]) for row in rows if row["replayed"]) for rows in batches]
    assert (first["dph/rehearsal_tokens/min"], first["dph/rehearsal_tokens/max"]) == (min(tokens), max(tokens))
    assert first["dph/explore_rows"] == 16
    # step 2, after the first of its mini-batches: the stored answers became likelier
    assert second["actor/rehearsal_loss"] < -1e-5
    assert 0 < first["critic/score/mean"] < 1


def test_the_checkpoint_of_the_dry_run_is_merged_and_taken_for_a_trained_base(dry_run, base_folder, tmp_path):
    """The document's line for merging, on what verl's FSDP2 engine wrote; it rounds the weights to bfloat16."""
    import torch
    from safetensors.torch import load_file

    from dphlib.integrations.verl.weights import find_weights, refuse_other

    actor = dry_run.with_name("checkpoints") / "global_step_2/actor"
    with pytest.raises(RunError, match="in 1 part"):
        find_weights(actor.parent)
    line = ["-m", "verl.model_merger", "merge", "--backend", "fsdp", "--local_dir", actor, "--target_dir", tmp_path]
    subprocess.run([sys.executable, *map(str, line)], check=True, capture_output=True)
    weights = find_weights(tmp_path)
    refuse_other(weights, base_folder)
    trained = torch.load(actor / "model_world_size_1_rank_0.pt", weights_only=False)
    for name, merged in load_file(weights / "model.safetensors").items():
        assert torch.equal(merged, trained[name].to_local().to(torch.bfloat16)), name
