"""What a model does to its last hidden states to get logits, compared once with the model's own when it is loaded.

Training computes log-probabilities from hidden states and the output layer, a chunk at a time, and so has to know all
of it: a scale (Granite, Cohere), a soft cap (Gemma 2), a bias (Phi). A model that does something else is refused.
"""

from __future__ import annotations

from typing import Any

import torch

from dphlib.logprobs import OutputHead, logprobs_from_hidden
from dphlib.runtime.files import InputError


def output_head(model: Any) -> OutputHead:
    """The head of a model, with an adapter or without."""
    config = model.config.get_text_config()
    return OutputHead(
        bias_V=getattr(model.get_output_embeddings(), "bias", None),
        scale=(getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


@torch.no_grad()
def refuse_other_head(model: Any, name: str) -> None:
    """Raises ValueError when `model`, named in the message, computes other logits than its `output_head`."""
    layer = model.get_output_embeddings()
    if layer is None:
        raise InputError(f"{name}: the model has no output layer; choose a causal language model")
    ids_1_T = torch.arange(16, device=model.device)[None] % len(layer.weight)
    logits_T_V = model(input_ids=ids_1_T, use_cache=False).logits[0].float()
    hidden_T_D = model.get_decoder()(input_ids=ids_1_T, use_cache=False).last_hidden_state[0]
    rounding = 4 * torch.finfo(model.dtype).eps * float(logits_T_V.abs().max())
    for tokens_T in (logits_T_V.argmax(-1), logits_T_V.argmin(-1)):
        theirs_T = logits_T_V.log_softmax(-1).gather(-1, tokens_T[:, None])[:, 0]
        ours_T = logprobs_from_hidden(hidden_T_D, layer.weight, tokens_T, head=output_head(model))
        off = float((ours_T - theirs_T).abs().max())
        if off > 1e-3 + rounding:
            raise InputError(
                f"{name}: {type(model).__name__} does more to its logits than scale, soft cap and bias (log-probs of "
                f"training would be off by {off:.2g} nats); choose a model with a plain output layer"
            )
