"""The third sampler: `vllm serve` on GPUs of its own, on this machine or another, asked over HTTP.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora --max-lora-rank 32 --generation-config vllm
    DPH_SAMPLER=vllm_server DPH_SERVERS=http://HOST:8000 DPH_SHARED=FOLDER dph train ...

1. Token ids go in and come out (`return_token_ids`), with vLLM's log-probs at temperature 1; none is tokenised again.
   Draws depend on seed, problem and sample alone, so neither the servers' number nor their load changes an answer.
2. An adapter is written to a folder that both machines see, under a name made of its hash, and loaded by that name. The
   server's prefix cache tells adapters apart by name and path, so no answer comes from keys of the adapter before.
3. Weights of a policy that is trained whole are written there too and loaded in place; the prefix cache is then reset.
   Both are endpoints of vLLM's development mode: start the server with VLLM_SERVER_DEV_MODE=1.

The endpoints are vLLM's own and open to everybody who reaches the port: keep it inside your network. Entropies are NaN.
Not here: starting servers, and weights sent from GPU to GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dphlib.models.adapters import adapter_sha256, write_weights
from dphlib.models.sharding import whole_state
from dphlib.runtime.files import RunError, say
from dphlib.runtime.processes import ALONE, Processes
from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.vllm import VERSION, requests_of
from dphlib.types import GREEDY_SAMPLE, Answer, Problem

SERVERS, SHARED, KEY = "DPH_SERVERS", "DPH_SHARED", "VLLM_API_KEY"
"""Environment variables: the servers' addresses with commas, the folder that they see too, their key if they ask."""
_ASKED_AT_ONCE = 64  # requests under way to one server
_TRIES, _PAUSE_S = 4, 2.0
_AGAIN = "run again, it goes on from the last checkpoint"


class ServerSampler:
    """Sampling by vLLM servers.

    Args:
        servers: their addresses, such as `http://10.0.0.2:8000`; each has the same base.
        shared: a folder that this machine and the servers see under the same path, for adapters and weights.
        tokenizer: the base's.
        adapters: whether policies carry adapters, rather than being trained whole.
        processes: those that train. Each asks the servers for its own answers; the first hands over weights.
        timeout_s: the longest that one problem's answers may take.

    Raises:
        RunError: no address, or a server that does not answer.
    """

    def __init__(
        self,
        servers: Sequence[str],
        shared: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        adapters: bool,
        processes: Processes = ALONE,
        timeout_s: float = 3600,
    ) -> None:
        self.servers = [server.strip().rstrip("/") for server in servers if server.strip()]
        if not self.servers:
            raise RunError(f"sampler vllm_server: no address; set {SERVERS}=http://HOST:PORT, several with commas")
        self.shared, self.tokenizer, self.adapters = shared.absolute(), tokenizer, adapters
        self.processes, self.timeout_s = processes, timeout_s
        self._key = os.environ.get(KEY)
        found = [self._call(server, "/v1/models")["data"][0] for server in self.servers]
        versions = [str(self._call(server, "/version")["version"]) for server in self.servers]
        if len(set(versions)) > 1 or len({str(model["id"]) for model in found}) > 1:
            raise RunError(f"the servers differ: {', '.join(self.servers)}; start the same vLLM and base on all")
        if versions[0].partition("+")[0] != VERSION and processes.first:
            say(f"{self.servers[0]} runs vLLM {versions[0]}; this was tested with {VERSION}")
        self.version, self._base = versions[0], str(found[0]["id"])
        self.max_tokens = min(int(model["max_model_len"]) for model in found)
        self._name, self._sha256 = self._base, None

    def sample(
        self,
        problems: Sequence[Problem],
        config: SamplingConfig,
        seed: int,
        on_done: Callable[[int], None] = lambda problems_done: None,
    ) -> list[list[Answer]]:
        """See `Sampler.sample`. An answer's random numbers depend on (seed, problem id, sample), not on its neighbours.

        Raises:
            ValueError: a prompt that leaves no room for an answer of `config.max_new_tokens`.
            RunError: a server that does not answer, or whose settings are not those of this module's head.
        """
        if not problems:
            return []
        prompts, seeds = requests_of(problems, self.tokenizer, config, seed, self.max_tokens)

        def ask(index: int) -> list[Answer]:
            server = self.servers[index % len(self.servers)]
            request = {
                "model": self._name, "prompt": prompts[index], "n": config.samples, "seed": seeds[index],
                "temperature": config.temperature, "top_p": config.top_p, "max_tokens": config.max_new_tokens,
                "logprobs": 0, "return_token_ids": True, "ignore_eos": True,
                "stop_token_ids": [self.tokenizer.eos_token_id],
            }  # fmt: skip
            reply = self._call(server, "/v1/completions", request)
            choices = sorted(reply["choices"], key=lambda choice: choice["index"])
            if len(choices) != config.samples:
                raise RunError(f"{server}: {len(choices)} answers to a request for {config.samples}; {_AGAIN}")
            return [self._answer(server, problems[index], choice, config) for choice in choices]

        with ThreadPoolExecutor(min(len(problems), _ASKED_AT_ONCE * len(self.servers))) as pool:
            answers = list(pool.map(ask, range(len(problems))))
        on_done(len(problems))
        return answers

    def _answer(self, server: str, problem: Problem, choice: dict[str, Any], config: SamplingConfig) -> Answer:
        ids = tuple(choice.get("token_ids") or ())
        logprobs = tuple((choice.get("logprobs") or {}).get("token_logprobs") or ())
        if not ids or len(ids) != len(logprobs):
            raise RunError(
                f"{server}: {len(ids)} token ids and {len(logprobs)} log-probs for an answer to {problem.id}; it must "
                f"be vLLM {VERSION} or one that knows return_token_ids"
            )
        truncated = choice["finish_reason"] == "length"
        if not truncated and ids[-1] != self.tokenizer.eos_token_id:
            raise RunError(
                f"{server}: an answer to {problem.id} ended at token {ids[-1]}, not at the tokenizer's end token "
                f"{self.tokenizer.eos_token_id}; start the server with --generation-config vllm"
            )
        sample = GREEDY_SAMPLE if config.temperature == 0 else int(choice["index"])
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Answer(problem.id, sample, ids, logprobs, text, truncated)

    def sync(self, policy: Any) -> None:
        """Hands over the adapter of `policy`, or all its weights where it has none; every process calls it.

        Raises:
            ValueError: the sampler was made for the other kind of policy.
            RunError: a server that does not take them.
        """
        if hasattr(policy, "peft_config") != self.adapters:
            made_for = "adapters" if self.adapters else "all weights"
            raise ValueError(f"this sampler was made for {made_for}, the policy is not; set adapters to fit it")
        if self.adapters:
            made = self._hand_over_adapter(policy) if self.processes.first else None
            self._name, self._sha256 = self.processes.gather(made)[0]
        else:
            state = whole_state(policy, keep=self.processes.first)
            if self.processes.first:
                self._hand_over_weights(policy, state)
            self.processes.wait()

    def _hand_over_adapter(self, policy: Any) -> tuple[str, str]:
        written = self.shared / f".tmp-{os.getpid()}-adapter"
        write_weights(policy, written)
        sha256 = adapter_sha256(written)
        name, before = f"policy-{sha256[:16]}", self._name
        folder = self.shared / name
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(written, folder)
        if name == before:
            return name, sha256
        for server in self.servers:
            # In place, for a run that goes on may load the adapter that it ended with.
            asked = {"lora_name": name, "lora_path": str(folder), "load_inplace": True}
            self._call(server, "/v1/load_lora_adapter", asked)
            if before != self._base:
                self._call(server, "/v1/unload_lora_adapter", {"lora_name": before})
        if before != self._base:
            shutil.rmtree(self.shared / before, ignore_errors=True)
        return name, sha256

    def _hand_over_weights(self, policy: Any, state: dict[str, Any]) -> None:
        folder = self.shared / "weights"
        policy.save_pretrained(folder, state_dict=state, safe_serialization=True)
        for server in self.servers:
            asked = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            self._call(server, "/collective_rpc", asked)
            if self._call(server, "/reset_prefix_cache", {}).get("success") is not True:
                raise RunError(f"{server} did not reset its prefix cache; does another run use it? {_AGAIN}")

    def record(self) -> dict[str, str | None]:
        """Version of vLLM, and the hash of the adapter under which the next answers are drawn (None: none, or full)."""
        return {"sampler": f"server vllm {self.version}", "adapter_sha256": self._sha256}

    def _call(self, server: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The reply of one endpoint; tried again where the server does not answer, for requests repeat themselves."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        data = None if body is None else json.dumps(body).encode()
        for tried in range(1, _TRIES + 1):
            try:
                request = urllib.request.Request(server + path, data, headers)
                with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
                    text = reply.read().decode()
                return json.loads(text) if text[:1] in ("{", "[") else {}
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace").strip().replace("\n", " ")[:300]
                if error.code < 500 or tried == _TRIES:
                    raise RunError(f"{server}{path}: {error.code} {said}{_way_out(path, error.code)}") from error
            except (OSError, ValueError) as error:
                if tried == _TRIES:
                    reason = getattr(error, "reason", error)
                    raise RunError(
                        f"{server}{path} does not answer ({reason}); start `vllm serve` there, see "
                        f"docs/several_gpus.md, and {_AGAIN}"
                    ) from error
            time.sleep(_PAUSE_S * tried)
        raise AssertionError("the last try returns or raises")


def _way_out(path: str, code: int) -> str:
    """What the user can do about a refusal."""
    if code in (401, 403):
        return f"; set {KEY} to the server's key"
    if code == 404 and path.endswith("lora_adapter"):
        return "; start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
    if code == 404 and path in ("/collective_rpc", "/reset_prefix_cache"):
        return "; start the server with VLLM_SERVER_DEV_MODE=1"
    if path.endswith("lora_adapter"):
        return f"; it must see {SHARED} under the same path, and --max-lora-rank must be at least the adapter's rank"
    return ""
