"""The pretrained model of the profile lm through verl's own loaders: the same tokens and the same log-probs."""

from __future__ import annotations

import pytest
import torch

from dphlib.models import pretrained
from dphlib.models.load import chat_prompt, load_model
from dphlib.settings.lm import SMOLLM2

pytestmark = pytest.mark.verl


def test_verl_loads_the_same_model_tokenizer_and_chat_format(tmp_path):
    from verl.utils.model import get_hf_auto_model_class
    from verl.workers.config import HFModelConfig

    pretrained.save(*pretrained.load(SMOLLM2, "cpu"), tmp_path)
    held = HFModelConfig(path=str(tmp_path), override_config={"attn_implementation": "sdpa"})
    loader = get_hf_auto_model_class(held.hf_config)
    theirs = loader.from_pretrained(held.local_path, torch_dtype=torch.float32, config=held.hf_config).eval()
    ours, words = load_model(tmp_path)
    prompt = chat_prompt(words, "question : 12 + 34 answer :")
    message = [{"role": "user", "content": "question : 12 + 34 answer :"}]
    assert held.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True) == prompt
    ids = words(prompt, return_tensors="pt")["input_ids"]
    assert held.tokenizer(prompt)["input_ids"] == ids[0].tolist()
    assert held.tokenizer.pad_token_id == held.generation_config.eos_token_id == words.eos_token_id
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, atol=1e-4, rtol=1e-5)
