"""Where the policy stands on a GPU, no tensor of the CPU meets one of the GPU; on a made-up GPU (`other_device`)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from other_device import GPU, OneDevice
from small import policy, sum_problems, tokenizer
from test_trainer import EVERY, references, run

from dphlib.models.tuning import prepare
from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.transformers import TransformersSampler
from dphlib.settings.stages import TuningConfig
from dphlib.training.scoring import answer_logprobs

SHORT = dict(iterations=2, diagnose_every=1)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("grpo", {"importance_cap": 2.0, "top_p": 0.9}),
        ("dapo", {"aggregation": "sequence_mean"}),
        ("rkl", {"token_budget": 40}),
        ("dph_f", {"importance_cap": 2.0, "token_budget": 40}),
        ("dph_js_definition", {"aggregation": "dr_grpo", "advantage_scale": "none"}),
        ("sft_rehearsal", {}),
    ],
)
def test_training_of_all_weights(method, changes):
    stored, device = references(), OneDevice()
    learner, base = device.put(policy()), device.put(policy().requires_grad_(False))
    with device:
        run(
            replace(EVERY[method], entropy_coef=0.01),
            learner=learner,
            stored=stored,
            options={"base": base},
            **SHORT,
            **changes,
        )
        assert {parameter.device for parameter in learner.parameters()} == {GPU}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_of_adapters(checkpointing):
    stored, device = references(), OneDevice()
    learner = device.put(prepare(policy(), TuningConfig("lora", 4, 8, gradient_checkpointing=checkpointing)))
    learner.get_base_model()._supports_flex_attn = False  # its kernels need a GPU, or a compiler
    with device:
        run("rkl", learner=learner, stored=stored, options={"base": None}, **SHORT)
        run("dph_js", learner=learner, stored=stored, options={"base": None}, **SHORT)


def test_answers_and_what_is_stored_of_them():
    problems, device = sum_problems(4), OneDevice()
    model = device.put(policy())
    with device:
        for temperature, top_p in ((0.0, 1.0), (1.0, 0.9)):
            config = SamplingConfig(1, temperature, top_p, 6)
            drawn = TransformersSampler(model, tokenizer()).sample(problems, config, 5)
            rows = [(problem.prompt, answer.token_ids) for problem, (answer,) in zip(problems, drawn, strict=True)]
            scored = answer_logprobs(model, tokenizer(), rows)
            for (answer,), again in zip(drawn, scored, strict=True):
                assert again == pytest.approx(answer.logprobs, abs=1e-4)


def test_a_mistake_is_seen():
    device = OneDevice()
    model = device.put(policy())
    with device:
        with pytest.raises(AssertionError, match="embedding of tensors on two devices"):
            model(torch.tensor([[1, 2, 3]]))
        logits = model(torch.tensor([[1, 2, 3]], device=model.device)).logits
        assert logits.device == logits[0, 1:].device == GPU and logits.cpu().device.type == "cpu"
        with pytest.raises(AssertionError, match="mul of tensors on two devices"):
            logits * torch.ones(logits.shape)
        with pytest.raises(AssertionError, match="numpy"):
            logits.detach().numpy()
        assert logits[torch.tensor([0])].device == GPU, "an index may be the CPU's"
        assert (logits * torch.tensor(2.0)).device == GPU, "a number too"
