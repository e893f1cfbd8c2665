"""A chat endpoint on this machine, which answers as a test wants it to."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes]


def completion(text: str, usage: tuple[int, int] = (100, 10)) -> Answer:
    body: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return 200, {}, json.dumps(body).encode()


class Endpoint:
    """A chat endpoint on this machine. `answer` gets the prompt and how often it was asked for, from 1."""

    def __init__(self, answer: Callable[[str, int], Answer]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.asked: Counter[str] = Counter()
        lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][0]["content"]
                with lock:
                    endpoint.requests.append(body)
                    endpoint.headers.append({"path": self.path, **dict(self.headers)})
                    endpoint.asked[prompt] += 1
                    count = endpoint.asked[prompt]
                status, headers, data = answer(prompt, count)
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # the client did not wait

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
