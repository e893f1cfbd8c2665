"""A client of OpenAI-compatible chat endpoints: retries, rate limit, token count. Standard library only."""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ezaudio.runtime.errors import InputError

MAX_REPLY_BYTES = 1_000_000
MAX_WAIT_S = 120.0
TRANSIENT = {408, 409, 425, 429}  # and all from 500 on: proxies before an endpoint have numbers of their own
REFUSED = {401, 403, 404, 405}


class ChatError(InputError):
    """This request got no usable answer, after all tries; another one may."""


class EndpointError(InputError):
    """No request will: wrong address, key or model."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer and what it cost in tokens; 0 where the endpoint does not say."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to whatever host it names."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(slots=True)
class ChatClient:
    """Asks `model` at `base_url` (".../v1"); may be used by several threads, which share the rate limit.

    Args:
        api_key_env: environment variable that holds the key; the key itself is never logged or stored. Not set: none.
        requests_per_minute: of all threads together; each request waits for its turn.
        max_tries: of one request. Waits double from `first_wait_s`, with jitter, or are what Retry-After says.
    """

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    requests_per_minute: float = 60.0
    timeout_s: float = 60.0
    max_tries: int = 6
    first_wait_s: float = 1.0
    max_completion_tokens: int = 200
    _next_turn: float = field(default=0.0, init=False)
    _turns: threading.Lock = field(default_factory=threading.Lock, init=False)
    _stopped: threading.Event = field(default_factory=threading.Event, init=False)
    _opener: urllib.request.OpenerDirector = field(init=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"'{self.base_url}' is no address of an endpoint: expected https://HOST/v1")
        key = os.environ.get(self.api_key_env, "")
        if not (key.isascii() and key.isprintable()):  # such as the line end of the file that it came from
            raise InputError(f"environment variable {self.api_key_env} holds more than a key: a line end, or no ASCII")
        self._opener = urllib.request.build_opener(_NoRedirects())

    def ask(self, prompt: str) -> Reply:
        """One user message, one answer.

        Raises:
            EndpointError: the address, the key or the model is refused.
            ChatError: refused for this prompt, or nothing usable after `max_tries`.
        """
        problem = ""
        for attempt in range(self.max_tries):
            self._wait_for_turn()
            wait_s = self.first_wait_s * 2**attempt * random.uniform(0.75, 1.25)
            try:
                return self._request(prompt)
            except urllib.error.HTTPError as error:
                with error:
                    problem = f"HTTP {error.code} {error.reason}"
                    if error.code in REFUSED or 300 <= error.code < 400:
                        raise EndpointError(self._refusal(problem)) from error
                    if error.code not in TRANSIENT and error.code < 500:
                        raise ChatError(f"{self.base_url} refused a request: {problem}") from error
                    wait_s = _retry_after_s(error.headers.get("Retry-After")) or wait_s
            except (OSError, http.client.HTTPException) as error:  # no connection, or it broke or timed out
                problem = " ".join(str(error).split())[:200] or type(error).__name__
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                problem = f"an answer that is no chat completion ({type(error).__name__})"
            if attempt + 1 < self.max_tries:
                self._sleep(min(wait_s, MAX_WAIT_S))
        raise ChatError(f"{self.base_url} gave no usable answer in {self.max_tries} tries, the last: {problem}")

    def stop(self) -> None:
        """Ends every wait: threads under way come back after the request that they are in."""
        self._stopped.set()

    def _request(self, prompt: str) -> Reply:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.max_completion_tokens,
        }
        headers = {"Content-Type": "application/json", "User-Agent": "ezaudio-data"}
        if key := os.environ.get(self.api_key_env, ""):
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
        with self._opener.open(request, timeout=self.timeout_s) as response:
            data = response.read(MAX_REPLY_BYTES + 1)
        if len(data) > MAX_REPLY_BYTES:
            raise ValueError("reply too large")
        answer = json.loads(data)
        text = answer["choices"][0]["message"]["content"]
        if not isinstance(text, str) or not text.strip():
            raise ValueError("empty reply")
        text.encode()  # half of a surrogate pair, where an answer was cut, is no text
        usage = answer.get("usage") or {}
        return Reply(text, int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))

    def _wait_for_turn(self) -> None:
        with self._turns:
            turn = max(self._next_turn, time.monotonic())
            self._next_turn = turn + 60.0 / self.requests_per_minute
        self._sleep(turn - time.monotonic())

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(max(0.0, seconds)):
            raise ChatError("stopped")

    def _refusal(self, problem: str) -> str:
        key = "set" if os.environ.get(self.api_key_env) else "not set"
        return (
            f"{self.base_url} refuses model '{self.model}': {problem}; check the address, the model's name and the key"
            f" (environment variable {self.api_key_env} is {key})"
        )


def _retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
