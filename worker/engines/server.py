"""One running llama-server: started, waited for, asked, proven to do what it was told, ended."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from farm.errors import BenchmarkError
from worker import isolation, leash
from worker.bench.peak import high_water_bytes
from worker.engines.counters import Counters, read_counters
from worker.engines.waiting import LISTEN_S, Waiting, beside
from worker.process import LoggedProcess

POLL_S = 0.02
PROBE_LIMIT_S = 10.0
STARTS = 3
BROKEN = (OSError, http.client.HTTPException)
# A crashing server prints its stack first.
DYING_S = 10.0

_PORT_TAKEN = re.compile(r"couldn't bind|address already in use", re.IGNORECASE)
# What llama-server logs when it goes on without the speculation it was asked for.
_FALLBACK = re.compile(
    r"failed to initialize speculative[^\n]*|speculative decoding not supported[^\n]*"
    r"|no implementations specified for speculative[^\n]*"
)

T = TypeVar("T")
# What threads have heard: an answer, or why there is none.
Answers = queue.Queue[T | Exception]
# Arguments for a port and a key; what else they hold is fixed.
Arguments = Callable[[int, str], list[str]]


class Process(LoggedProcess):
    """A llama-server on a leash."""

    what = "llama-server"


class Server:
    """A llama-server that answers on a port of its own, to a key that nobody else knows."""

    def __init__(
        self,
        binary: Path,
        arguments: Arguments,
        models: Sequence[Path],
        log: Path,
        speculates: bool,
        at_once: int,
    ) -> None:
        self.identity = (str(binary), *arguments(0, ""))
        self.prompts_seen: set[str] = set()
        self._binary = binary
        self._arguments = arguments
        self._models = models
        self._log = log
        self._speculates = speculates
        self._at_once = at_once
        self._key = secrets.token_urlsafe(16)
        self._port = 0
        self._process: Process | None = None
        self._unlimited: set[http.client.HTTPConnection] = set()

    @property
    def process(self) -> Process:
        """Return the started process."""
        assert self._process is not None
        return self._process

    @property
    def isolation(self) -> str:
        """Return what kept it from the rest of the machine."""
        return isolation.held(self.process.log_text())

    def start(self, deadline: float) -> Waiting[None]:
        """Start, wait until it serves, and check that it speculates or doesn't as it was told.

        Raises BenchmarkError: "load-failed", "out-of-memory", "not-speculating", "timeout".
        """
        for attempt in range(STARTS):
            self._launch()
            while not self._serves():
                if self.process.exit_status is not None:
                    break
                self.give_up_at(deadline)
                yield None
                time.sleep(POLL_S)
            else:
                self._prove()
                return
            taken = _PORT_TAKEN.search(self.process.log_text())
            if not taken or attempt == STARTS - 1:
                raise self._failed_start()
            self.process.kill()

    def complete(self, request: dict[str, Any], deadline: float) -> Waiting[dict[str, Any]]:
        """Return what `/completion` answers to a request.

        Raises BenchmarkError: "bad-request", "decode-failed", "crashed", "out-of-memory",
        "timeout".
        """
        try:
            return (
                yield from beside(
                    lambda: self.answer(request), deadline, lambda: self.give_up_at(deadline)
                )
            )
        except BROKEN as error:
            raise self._lost(error) from None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask `/completion` on a connection of its own and block until it has answered.

        Raises BenchmarkError "bad-request" or "decode-failed"; whatever is in BROKEN.
        """
        status, body = self._ask("/completion", request, None)
        if status == 200:
            found: dict[str, Any] = json.loads(body)
            return found
        with contextlib.suppress(ValueError, KeyError, TypeError):
            body = json.loads(body)["error"]["message"]
        kind = "bad-request" if 400 <= status < 500 else "decode-failed"
        raise BenchmarkError(kind, f"llama-server answered {status}: {body[:300]}")

    def tokenize(self, text: str, *, bare: bool) -> list[int]:
        """Return a text's token ids, with the model's own special tokens unless `bare`."""
        body = {"content": text, "add_special": not bare, "parse_special": True}
        status, answer = self._probe("/tokenize", body)
        try:
            return [int(token) for token in json.loads(answer)["tokens"]]
        except (KeyError, TypeError, ValueError):
            raise BenchmarkError(
                "garbage", f"llama-server answered {status} where tokens were asked for."
            ) from None

    def listen(self, answers: Answers[T], deadline: float) -> Waiting[T]:
        """Return what threads put there next; the server's death and the deadline end the wait.

        Raises BenchmarkError, whatever an answer in BROKEN means, and any other that was put there.
        """
        while True:
            try:
                left_s = max(deadline - time.monotonic(), POLL_S)
                result = answers.get(timeout=min(LISTEN_S, left_s))
            except queue.Empty:
                self.give_up_at(deadline)
                yield None
                continue
            if isinstance(result, BROKEN):
                raise self._lost(result)
            if isinstance(result, Exception):
                raise result
            return result

    def hang_up(self) -> None:
        """Break the connections of all completions: llama-server then drops what was asked."""
        for connection in list(self._unlimited):
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def busy(self) -> list[bool]:
        """Return for each slot whether it works on a request, by `/slots`.

        Raises BenchmarkError "unsupported" where this build does not show its slots.
        """
        status, body = self._probe("/slots")
        if status != 200:
            raise BenchmarkError("unsupported", "This llama-server does not show its /slots.")
        return [bool(slot["is_processing"]) for slot in json.loads(body)]

    def counters(self) -> Counters:
        """Return what `/metrics` counts."""
        status, body = self._probe("/metrics")
        return read_counters(body if status == 200 else "")

    def peak_rss_bytes(self) -> int | None:
        """Return the most memory the server has held, what it holds where only that is known."""
        with contextlib.suppress(psutil.Error, OSError, ValueError):
            for child in psutil.Process(self.process.pid).children():
                return high_water_bytes(child.pid) or int(child.memory_info().rss)
        return None

    def not_speculating(self, reason: str) -> BenchmarkError:
        """Return the error for speculation that was asked for and does not happen."""
        return BenchmarkError(
            "not-speculating",
            f"llama-server decodes without the speculation it was asked for: {reason}.",
            self.process.log_tail(),
        )

    def end(self) -> None:
        """End the server; harmless when it is gone or was never started."""
        if self._process is not None:
            self._process.end()

    def _launch(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        leashed = [sys.executable, "-I", leash.__file__, str(self._binary)]
        # llama.cpp takes options from the environment too; those nobody here has asked for.
        environment = isolation.environment()
        clean = {k: v for k, v in environment.items() if not k.startswith("LLAMA_")}
        command = [*leashed, *self._arguments(self._port, self._key)]
        rules = isolation.policy(self._models, [self._binary], self._port)
        self._process = Process(isolation.confined(command, rules), self._log, clean)

    def _serves(self) -> bool:
        try:
            if self._ask("/health", None, PROBE_LIMIT_S)[0] != 200:
                return False
            # Whoever else has the port may answer that, but doesn't know our key.
            return self._ask("/tokenize", {"content": "a"}, PROBE_LIMIT_S)[0] == 200
        except BROKEN:
            return False

    def _prove(self) -> None:
        """Check the running server against what it was told, by its own word."""
        status, body = self._probe("/slots")
        slots = json.loads(body) if status == 200 else []
        says = [slot["speculative"] for slot in slots if "speculative" in slot]
        if self._speculates:
            if line := _FALLBACK.search(self.process.log_text()):
                raise self.not_speculating(f"its log says '{line[0].strip()}'")
            if not all(says):
                raise self.not_speculating("/slots says that it does not speculate")
        elif any(says):
            raise BenchmarkError("unsupported", "The baseline llama-server speculates unasked.")
        if slots and len(slots) != self._at_once:
            raise BenchmarkError(
                "unsupported",
                f"llama-server works on {len(slots)} requests at once, not on {self._at_once}.",
            )

    def _failed_start(self) -> BenchmarkError:
        ended = self.process.gone()
        if ended.kind != "out-of-memory":
            errors = re.findall(r" E (?:srv\s+)?(.+)$", self.process.log_text(), re.MULTILINE)
            said = f"; its log says '{errors[0].strip()}'" if errors else ""
            ended = BenchmarkError("load-failed", f"{str(ended).rstrip('.')} while loading{said}.")
        ended.log_tail = self.process.log_tail()
        return ended

    def _lost(self, error: Exception) -> BenchmarkError:
        """Return why the connection broke: as a rule the server is gone, or about to be."""
        give_up = time.monotonic() + DYING_S
        while self.process.exit_status is None and time.monotonic() < give_up:
            time.sleep(POLL_S)
        if self.process.exit_status is None:
            found = BenchmarkError("crashed", f"llama-server broke the connection: {error}.")
        else:
            found = self.process.gone()
        found.log_tail = self.process.log_tail()
        return found

    def give_up_at(self, deadline: float) -> None:
        """End the server and raise BenchmarkError "timeout" once the deadline has passed."""
        if time.monotonic() >= deadline:
            tail = self.process.log_tail()
            self.process.kill()
            message = "The job ran past its time limit; raise job_timeout_s or ask for less."
            raise BenchmarkError("timeout", message, tail)

    def _probe(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        try:
            return self._ask(path, body, PROBE_LIMIT_S)
        except BROKEN as error:
            raise self._lost(error) from None

    def _ask(
        self, path: str, body: dict[str, Any] | None, limit_s: float | None
    ) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=limit_s)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        if limit_s is None:
            self._unlimited.add(connection)
        try:
            content = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, content, headers)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            self._unlimited.discard(connection)
            connection.close()
