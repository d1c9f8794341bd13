"""A process in a group of its own with its log on disk: the model dies alone, and wholly."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from farm.errors import BenchmarkError

LOG_TAIL_BYTES = 4000
END_GRACE_S = 3.0


class LoggedProcess:
    """A running process. `end` always ends its whole group."""

    what = "process"

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: dict[str, str] | None = None,
        stdout: int | None = None,
    ) -> None:
        """Start it. stdout: subprocess.PIPE, or None for the log, where stderr always goes."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("wb") as log_file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log_file if stdout is None else stdout,
                stderr=log_file,
                start_new_session=True,
                env=environment,
            )

    @property
    def is_running(self) -> bool:
        """Say whether the process lives."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Return the process id, which is also its group's."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """Return how it ended, minus the signal's number where a signal did it; None so far."""
        return self._process.poll()

    def end(self) -> None:
        """End the process and everything it started; harmless when it is gone."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_GRACE_S if self.is_running else 0)
        self.kill()

    def kill(self) -> None:
        """End the process's group at once (deadline passed, lease lost)."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def log_text(self) -> str:
        """Return what the process logged so far."""
        with contextlib.suppress(OSError):
            return self._log.read_text(errors="replace")
        return ""

    def log_tail(self) -> str:
        """Return the end of what the process logged."""
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - LOG_TAIL_BYTES, 0))
            return file.read().decode(errors="replace")
        return ""

    def gone(self) -> BenchmarkError:
        """Return the error for a process that ended by itself; one that only closed its
        pipes is ended first."""
        try:
            status = self._process.wait(END_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return BenchmarkError(
                "crashed", f"The {self.what} closed its pipes without ending, and was ended."
            )
        if status == -signal.SIGKILL:
            # Nobody here kills a process that is being listened to: the kernel did.
            return BenchmarkError(
                "out-of-memory",
                f"The {self.what} was killed by the system, as happens when memory runs out; "
                "use a smaller context, fewer GPU layers or a smaller model.",
            )
        if status < 0:
            name = signal.Signals(-status).name
            return BenchmarkError("crashed", f"The {self.what} crashed with {name}.")
        return BenchmarkError("crashed", f"The {self.what} ended with exit status {status}.")

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin
