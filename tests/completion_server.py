"""A small server with the endpoints of `vllm serve` that `ServerSampler` uses, answering from a real small policy.

It answers in vLLM's shape (0.32) from the base or from the adapter that it was told to load, so what a test trains with
it shows whether adapters and weights were delivered. `asked` keeps every request; `faults` are told below.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from small import policy
from transformers import AutoModelForCausalLM


class CompletionServer:
    """The server, on a free port of this machine, until `close`.

    `faults`: "busy" answers the next request 503, "no adapters" and "no development" leave out endpoints, "no ids"
    leaves out token ids, "other end" ends answers at another token, "cache held" does not reset the prefix cache.
    """

    def __init__(self, version: str = "0.32.0", room: int = 128) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.faults: set[str] = set()
        self.version, self.room, self.key = version, room, None
        self.models = {"base": policy()}
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and reply; None for a path that is not there, as text where vLLM gives text."""
        with self._lock:
            self.asked.append((path, body))
            if "busy" in self.faults:
                self.faults.remove("busy")
                return 503, {"error": {"message": "busy"}}
            if path == "/v1/models":
                return 200, {"data": [{"id": "base", "max_model_len": self.room}]}
            if path == "/version":
                return 200, {"version": self.version}
            if path == "/v1/completions":
                return self._complete(body)
            if path == "/v1/load_lora_adapter" and "no adapters" not in self.faults:
                if body["lora_name"] in self.models and not body["load_inplace"]:
                    return 400, {"error": {"message": "has already been loaded"}}
                if not Path(body["lora_path"], "adapter_config.json").is_file():
                    return 404, {"error": {"message": f"No adapter found for {body['lora_path']}"}}
                self.models[body["lora_name"]] = PeftModel.from_pretrained(policy(), body["lora_path"]).eval()
                return 200, "Success"
            if path == "/v1/unload_lora_adapter" and "no adapters" not in self.faults:
                del self.models[body["lora_name"]]
                return 200, "Success"
            if path == "/collective_rpc" and "no development" not in self.faults:
                assert body["method"] == "reload_weights"
                self.models["base"] = AutoModelForCausalLM.from_pretrained(body["kwargs"]["weights_path"]).eval()
                return 200, {"results": [None]}
            if path == "/reset_prefix_cache" and "no development" not in self.faults:
                return 200, {"success": "cache held" not in self.faults}
            return 404, {"detail": "Not Found"}

    @torch.inference_mode()
    def _complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["model"] not in self.models:
            return 404, {"error": {"message": f"The model {body['model']} does not exist."}}
        model, (end,) = self.models[body["model"]], body["stop_token_ids"]
        choices = []
        for index in reversed(range(body["n"])):
            generator = torch.Generator().manual_seed(body["seed"] + index)
            ids: list[int] = []
            logprobs: list[float] = []
            while len(ids) < body["max_tokens"] and (not ids or ids[-1] != end):
                scores_V = model(torch.tensor([body["prompt"] + ids])).logits[0, -1].log_softmax(-1)
                cold = body["temperature"] == 0
                drawn = scores_V.argmax() if cold else torch.multinomial(scores_V.exp(), 1, generator=generator)[0]
                ids.append(int(drawn))
                logprobs.append(float(scores_V[drawn]))
            reason = "stop" if ids[-1] == end or "other end" in self.faults else "length"
            choice = {"index": index, "finish_reason": reason, "logprobs": {"token_logprobs": logprobs}}
            choices.append(choice | ({} if "no ids" in self.faults else {"token_ids": ids}))
        return 200, {"choices": choices}


class _Handler(BaseHTTPRequestHandler):
    owner: CompletionServer

    def _reply(self, body: dict[str, Any]) -> None:
        if self.owner.key and self.headers.get("Authorization") != f"Bearer {self.owner.key}":
            status, reply = 401, {"error": "Unauthorized"}
        else:
            status, reply = self.owner.answer(self.path, body)
        content = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self._reply({})

    def do_POST(self) -> None:
        self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def log_message(self, *_: Any) -> None:
        pass
