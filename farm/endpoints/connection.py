"""One request to an endpoint, its answer line by line, and what its refusals mean."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from farm.endpoints.register import Endpoint, is_near
from farm.errors import BenchmarkError

PROBE_LIMIT_S = 10.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024
_BROKEN = (OSError, http.client.HTTPException)
_KINDS = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
_SHOWN = 300
_READ_BYTES = 64 * 1024


class Exchange:
    """A request, from before it is sent until its answer is read. The address is checked before
    anything is sent: a name that is private when it is registered may stand for another host later.
    """

    def __init__(
        self, endpoint: Endpoint, path: str, body: dict[str, Any] | None, limit_s: float
    ) -> None:
        """limit_s: the longest silence. Without a body it is a GET."""
        self._endpoint = endpoint
        self._body = body
        parts = urlsplit(endpoint.url)
        self._path = parts.path + path
        kind = _KINDS[parts.scheme]
        self._connection = kind(parts.hostname or "", parts.port, timeout=limit_s)
        self._socket: socket.socket | None = None
        self._hung_up = False
        self._response: http.client.HTTPResponse
        self.status = 0

    def send(self) -> None:
        """Send the request and wait for the answer's head, which some servers send only with the
        finished answer; whoever hangs up meanwhile ends the wait.

        Raises BenchmarkError "server-lost", "unsupported", "unauthorized".
        """
        headers = {"Content-Type": "application/json"}
        if key := _key(self._endpoint):
            headers["Authorization"] = f"Bearer {key}"
        try:
            self._connection.connect()
            self._socket = self._connection.sock
            if self._hung_up:
                raise ConnectionAbortedError
            self._require_near_peer()
            content = None if self._body is None else json.dumps(self._body)
            method = "GET" if self._body is None else "POST"
            self._connection.request(method, self._path, content, headers)
            self._response = self._connection.getresponse()
        except _BROKEN as error:
            raise self._lost(error) from None
        self.status = self._response.status

    def lines(self) -> Iterator[bytes]:
        """Yield the answer's lines as they arrive. Raises BenchmarkError as `refusal` says,
        "server-lost" where the connection breaks, "garbage" where the answer has no end."""
        if self.status != 200:
            raise self.refusal()
        left = MAX_ANSWER_BYTES
        try:
            while line := self._response.readline(left + 1):
                left -= len(line)
                if left < 0:
                    raise BenchmarkError(
                        "garbage",
                        f"The endpoint {self._endpoint.name} sent more than "
                        f"{MAX_ANSWER_BYTES >> 20} MiB, which is no completion.",
                    )
                yield line
        except _BROKEN as error:
            raise self._lost(error) from None

    def body(self) -> bytes:
        """Return the whole answer; see `lines`."""
        return b"".join(self.lines())

    def hang_up(self) -> None:
        """Break the connection, from whatever thread and whenever: a server that notices stops
        decoding. What was not sent is not sent any more."""
        self._hung_up = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up and free the connection, from the thread that sent."""
        self.hang_up()
        with contextlib.suppress(OSError):
            self._connection.close()

    def refusal(self) -> BenchmarkError:
        """Return the error that a status other than 200 means: "unauthorized", "server-busy",
        "bad-request", "decode-failed"."""
        name, status = self._endpoint.name, self.status
        if status in (401, 403):
            variable = self._endpoint.key_variable
            cure = (
                f"look at the key in {variable}"
                if variable
                else "register it with --key-env and the name of the variable that holds its key"
            )
            return BenchmarkError("unauthorized", f"The endpoint {name} answered {status}: {cure}.")
        said = self._said()
        if status == 429:
            return BenchmarkError(
                "server-busy",
                f"The endpoint {name} answered 429, too many requests{said}; measure it when "
                "nobody else uses it.",
            )
        if status == 404:
            said += "; see 'farm endpoints check' for the model's name and what is spoken there"
        kind = "bad-request" if 300 <= status < 500 else "decode-failed"
        return BenchmarkError(kind, f"The endpoint {name} answered {status}{said}.")

    def _said(self) -> str:
        """Return the server's own words, on one line and without the key."""
        try:
            text = self._response.read(_READ_BYTES).decode(errors="replace")
        except _BROKEN:
            return ""
        return f": {without_key(self._endpoint, message_in(text))}" if text.strip() else ""

    def _require_near_peer(self) -> None:
        assert self._socket is not None
        peer = str(self._socket.getpeername()[0])
        if not self._endpoint.remote and not is_near(peer):
            raise BenchmarkError(
                "unsupported",
                f"The endpoint {self._endpoint.name} is at {peer}, outside this machine and its "
                "private networks: prompts would leave for it. Register it with --remote if they "
                "may.",
            )

    def _lost(self, error: Exception) -> BenchmarkError:
        name, url = self._endpoint.name, self._endpoint.url
        if isinstance(error, TimeoutError):
            reason = "said nothing for too long"
        elif isinstance(error, ConnectionRefusedError | socket.gaierror):
            reason = "does not answer: nothing listens there"
        else:
            reason = f"broke the connection ({type(error).__name__})"
        return BenchmarkError(
            "server-lost", f"The endpoint {name} at {url} {reason}; is its server still running?"
        )


def get(endpoint: Endpoint, path: str) -> str | None:
    """Return what a GET answers, None where the server has nothing there. Raises BenchmarkError."""
    exchange = Exchange(endpoint, path, None, PROBE_LIMIT_S)
    try:
        exchange.send()
        # 501 is llama-server's word for what it was not started with.
        if exchange.status in (401, 403, 429, 500, 502, 503, 504):
            raise exchange.refusal()
        return exchange.body().decode(errors="replace") if exchange.status == 200 else None
    finally:
        exchange.close()


def get_json(endpoint: Endpoint, path: str) -> dict[str, Any]:
    """Return the JSON object that a GET answers, {} where there is none. Raises BenchmarkError."""
    try:
        found = json.loads(get(endpoint, path) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def message_in(text: str) -> str:
    """Return the message of a server's error, as OpenAI's API, Ollama and FastAPI word it."""
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        for key in ("error", "message", "detail"):
            if isinstance(found, dict) and found.get(key):
                found = found[key]
        if isinstance(found, str):
            text = found
    return printable(text)[:_SHOWN].rstrip(".")


def printable(text: str) -> str:
    """Return a server's words on one line without control characters."""
    return "".join(char for char in " ".join(text.split()) if char.isprintable())


def without_key(endpoint: Endpoint, text: str) -> str:
    """Return a server's words with its key left out, should it repeat it."""
    key = os.environ.get(endpoint.key_variable) if endpoint.key_variable else None
    return text.replace(key, "[key]") if key else text


def _key(endpoint: Endpoint) -> str | None:
    if endpoint.key_variable is None:
        return None
    key = os.environ.get(endpoint.key_variable, "").strip()
    if not key:
        raise BenchmarkError(
            "unauthorized",
            f"The endpoint {endpoint.name} takes its key from {endpoint.key_variable}, which is "
            "not set here; set it where the command or the worker is started.",
        )
    return key
