"""A child process that speaks JSON lines, in its own process group, with its log on disk."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from farm.errors import BenchmarkError

LOG_TAIL_BYTES = 4000
END_GRACE_S = 3.0


class Child:
    """A running child. Reading never blocks past its limit; `end` always ends its whole group."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: dict[str, str] | None = None
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("wb") as log_file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                start_new_session=True,
                env=environment,
            )
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def is_running(self) -> bool:
        """Say whether the process lives."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Return the process id, which is also its group's."""
        return self._process.pid

    def send(self, message: dict[str, Any]) -> None:
        """Write one message. Raises BenchmarkError("crashed") where the child is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._gone() from None

    def receive(self, deadline: float) -> dict[str, Any] | None:
        """Return the next message, or None once `deadline` (time.monotonic) has passed.

        Raises BenchmarkError: "crashed" or "out-of-memory" where the child ended, "garbage"
        where it wrote something that is not a message.
        """
        try:
            line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.0))
        except queue.Empty:
            return None
        # A line without an end is the last thing a dying child wrote.
        if line is None or not line.endswith(b"\n"):
            raise self._gone()
        try:
            message = json.loads(line)
            if isinstance(message, dict) and "event" in message:
                return message
        except ValueError:
            pass
        shown = line[:80].decode(errors="replace").strip()
        raise BenchmarkError("garbage", f"The benchmark child wrote no message but: {shown!r}.")

    def end(self) -> None:
        """End the child and everything it started; harmless when it is gone."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_GRACE_S if self.is_running else 0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def kill(self) -> None:
        """End the child's group at once (deadline passed, lease lost)."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def log_tail(self) -> str:
        """Return the end of what the child and llama.cpp logged."""
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - LOG_TAIL_BYTES, 0))
            return file.read().decode(errors="replace")
        return ""

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _gone(self) -> BenchmarkError:
        try:
            status = self._process.wait(END_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return BenchmarkError(
                "crashed", "The benchmark child closed its pipes without ending, and was ended."
            )
        if status == -signal.SIGKILL:
            # Nobody here kills a child that is being listened to: the kernel did.
            return BenchmarkError(
                "out-of-memory",
                "The benchmark child was killed by the system, as happens when memory runs out; "
                "use a smaller context, fewer GPU layers or a smaller model.",
            )
        if status < 0:
            name = signal.Signals(-status).name
            return BenchmarkError("crashed", f"The benchmark child crashed with {name}.")
        return BenchmarkError("crashed", f"The benchmark child ended with exit status {status}.")
