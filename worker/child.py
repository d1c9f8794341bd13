"""A child process that speaks JSON lines, in its own process group, with its log on disk."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from farm.errors import BenchmarkError
from worker.process import LoggedProcess


class Child(LoggedProcess):
    """A running child. Reading never blocks past its limit; `end` always ends its whole group."""

    what = "benchmark child"

    def __init__(
        self, command: Sequence[str], log: Path, environment: dict[str, str] | None = None
    ) -> None:
        super().__init__(command, log, environment, stdout=subprocess.PIPE)
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, message: dict[str, Any]) -> None:
        """Write one message. Raises BenchmarkError("crashed") where the child is gone."""
        try:
            self._stdin.write(json.dumps(message).encode() + b"\n")
            self._stdin.flush()
        except OSError:
            raise self.gone() from None

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
            raise self.gone()
        try:
            message = json.loads(line)
            if isinstance(message, dict) and "event" in message:
                return message
        except ValueError:
            pass
        shown = line[:80].decode(errors="replace").strip()
        raise BenchmarkError("garbage", f"The benchmark child wrote no message but: {shown!r}.")

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(None)
