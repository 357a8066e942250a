"""Decoding in which a prompt is read and kept once, however many answers are drawn for it.

A row attends to its prompt, whose keys and values meet all of its rows in one matrix product, and to its own tokens, in
a buffer with room for them. The softmax is over both, so the numbers are those of plain decoding but for rounding.

Not here: layers with another cache than full attention's (sliding window, linear); `decoding` then repeats the prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from dphlib.models.output_head import output_head

ATTENTION = "shared_prompt"
"""Name under which the attention is registered with `transformers`."""


class _OwnTokens(DynamicLayer):
    """Keys and values (B, K, T, D) of the rows' own tokens: a new token is written, nothing else is copied."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room, self._held = room, 0
        self._buffers: tuple[Tensor, ...] = ()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self._buffers:
            rows, heads, _, size = key_states.shape
            self._buffers = tuple(key_states.new_empty(rows, heads, self._room, size) for _ in range(2))
        end = self._held + key_states.shape[-2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._held : end] = new
        self._held = end
        keys, values = (buffer[:, :, :end] for buffer in self._buffers)
        return keys, values

    def get_seq_length(self) -> int:
        return self._held

    def keep(self, index_B: Tensor) -> None:
        kept = []
        for buffer in self._buffers:
            rest = buffer.new_empty(len(index_B), *buffer.shape[1:])
            rest[:, :, : self._held] = buffer[:, :, : self._held].index_select(0, index_B)
            kept.append(rest)
        self._buffers = tuple(kept)


class SharedPrompts:
    """Rows of answers to prompts, the prompts' keys and values shared.

    Args:
        model: a decoder with full attention.
        prompts: token ids of P prompts.
        samples: rows of each prompt, side by side; B = P x samples.
        room: tokens that an answer may have.
        pad_token_id: fills short prompts.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], samples: int, room: int, pad_token_id: int
    ) -> None:
        device, width = model.device, max(map(len, prompts))
        lengths_P = torch.tensor([len(prompt) for prompt in prompts], device=device)
        # Padded on the right: what follows a prompt's end is seen by none of its tokens, so no mask is needed.
        tokens_P_W = torch.tensor([[*p, *[pad_token_id] * (width - len(p))] for p in prompts], device=device)
        cache = DynamicCache(config=model.config)
        hidden_P_W_D = model.get_decoder()(
            input_ids=tokens_P_W, past_key_values=cache, use_cache=True
        ).last_hidden_state
        last_P_D = hidden_P_W_D[torch.arange(len(prompts), device=device), lengths_P - 1]
        self._model, self._samples = model, samples
        self._prompts: list[Any] = [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr]
        outside_P_W = torch.arange(width, device=device) >= lengths_P[:, None]
        self._bias_P_W = torch.zeros(outside_P_W.shape, dtype=torch.float32, device=device).masked_fill_(
            outside_P_W, float("-inf")
        )
        self._prompt_B = torch.arange(len(prompts), device=device).repeat_interleave(samples)
        self._position_B = lengths_P.repeat_interleave(samples)
        self._own = DynamicCache()
        self._own_layers = [_OwnTokens(room) for _ in cache.layers]
        self._own.layers = list(self._own_layers)
        logits_P_V = output_head(model).logits(model.get_output_embeddings()(last_P_D))
        self.logits_B_V = logits_P_V.repeat_interleave(samples, 0)
        self._place()

    def step(self, tokens_B: Tensor) -> None:
        """Appends a token to every row; `logits_B_V` then predict the next."""
        self.logits_B_V = self._model(
            input_ids=tokens_B[:, None],
            position_ids=self._position_B[:, None],
            past_key_values=self._own,
            use_cache=True,
            shared_prompts=self,
        ).logits[:, -1]
        self._position_B = self._position_B + 1

    def keep(self, index_B: Tensor) -> None:
        """Goes on with these rows only, in ascending order."""
        self._prompt_B, self._position_B = self._prompt_B[index_B], self._position_B[index_B]
        for layer in self._own_layers:
            layer.keep(index_B)
        self._place()

    def _place(self) -> None:
        """Each row's place in a grid of prompts x rows, in which a prompt's rows meet it in one product."""
        prompt_B = self._prompt_B
        counts_P = torch.bincount(prompt_B, minlength=len(self._bias_P_W))
        first_P = counts_P.cumsum(0) - counts_P
        self._rows = int(counts_P.max())
        place_B = prompt_B * self._rows + torch.arange(len(prompt_B), device=prompt_B.device) - first_P[prompt_B]
        self._place_B = None if len(prompt_B) == len(counts_P) * self._rows else place_B
        self._bias_B_W = self._bias_P_W[prompt_B]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention (B, 1, H, D) of queries (B, H, 1, D) to their prompt and to own keys and values (B, K, T, D)."""
        (prompt_keys, prompt_values), own = self._prompts[layer], key.shape[-2]
        B, H, _, D = query.shape
        K, W = prompt_keys.shape[1:3]
        query = (query * scaling).reshape(B, K, H // K, D)
        to_prompt = self._rows_of(self._grid(query) @ prompt_keys.transpose(-1, -2), H // K)
        scores = torch.cat([to_prompt + self._bias_B_W[:, None, None], query @ key.transpose(-1, -2)], -1)
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        of_prompt, of_own = weights.split([W, own], -1)
        mixed = self._rows_of(self._grid(of_prompt) @ prompt_values, H // K) + of_own @ value
        return mixed.reshape(B, 1, H, D)

    def _grid(self, states: Tensor) -> Tensor:
        """(B, K, G, X) -> (P, K, rows x G, X), zeros where a prompt has fewer rows."""
        _, K, G, X = states.shape
        P = len(self._bias_P_W)
        if self._place_B is not None:
            states = states.new_zeros(P * self._rows, K, G, X).index_copy_(0, self._place_B, states)
        return states.view(P, self._rows, K, G, X).transpose(1, 2).reshape(P, K, self._rows * G, X)

    def _rows_of(self, grid: Tensor, G: int) -> Tensor:
        """The inverse of `_grid`."""
        P, K, _, X = grid.shape
        states = grid.view(P, K, self._rows, G, X).transpose(1, 2).reshape(P * self._rows, K, G, X)
        return states if self._place_B is None else states.index_select(0, self._place_B)


class RepeatedPrompts:
    """The same by plain decoding, every row with its own copy of the prompt: for any kind of layer."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], samples: int, room: int, pad_token_id: int
    ) -> None:
        device, width = model.device, max(map(len, prompts))
        tokens_P_W = torch.tensor([[*[pad_token_id] * (width - len(p)), *p] for p in prompts], device=device)
        mask_P_W = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        self._model, self._cache = model, DynamicCache(config=model.config)
        positions_P_W = (mask_P_W.cumsum(-1) - 1).clamp(min=0)
        logits_P_V = model(
            input_ids=tokens_P_W,
            attention_mask=mask_P_W,
            position_ids=positions_P_W,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self._cache.batch_repeat_interleave(samples)
        self._mask_B_T = mask_P_W.repeat_interleave(samples, 0)
        self._position_B = positions_P_W[:, -1].repeat_interleave(samples, 0) + 1
        self.logits_B_V = logits_P_V.repeat_interleave(samples, 0)

    def step(self, tokens_B: Tensor) -> None:
        self._mask_B_T = torch.cat([self._mask_B_T, self._mask_B_T.new_ones(len(tokens_B), 1)], 1)
        self.logits_B_V = self._model(
            input_ids=tokens_B[:, None],
            attention_mask=self._mask_B_T,
            position_ids=self._position_B[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        self._position_B = self._position_B + 1

    def keep(self, index_B: Tensor) -> None:
        self._cache.batch_select_indices(index_B)
        self._mask_B_T, self._position_B = self._mask_B_T[index_B], self._position_B[index_B]


@contextmanager
def decoding(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], samples: int, room: int, pad_token_id: int
) -> Iterator[SharedPrompts | RepeatedPrompts]:
    """Rows of `samples` answers to each prompt, decoded by `step`; see `SharedPrompts`."""
    if not attends_fully(model.config):
        yield RepeatedPrompts(model, prompts, samples, room, pad_token_id)
        return
    rows = SharedPrompts(model, prompts, samples, room, pad_token_id)
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield rows
    finally:
        model.set_attn_implementation(before)


def attends_fully(config: PreTrainedConfig) -> bool:
    """Whether every layer of a model attends to all earlier tokens, without a cap, and keeps them."""
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        return False
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    shared_prompts: SharedPrompts,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    return shared_prompts.attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(ATTENTION, _attention)
