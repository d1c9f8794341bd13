"""Running a system tool within a time limit, so that a hung driver never stops a worker."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

# How long a killed tool may take to go. One stuck inside the kernel never goes, and is left behind.
KILL_WAIT_S = 1.0

log = logging.getLogger(__name__)


class ToolStatus(StrEnum):
    """How a tool run ended. FINISHED says nothing about its exit code."""

    FINISHED = "finished"
    MISSING = "missing"
    TIMED_OUT = "timed-out"


@dataclass(frozen=True)
class ToolRun:
    """A tool's answer. stdout is "" and exit_code None unless it finished."""

    status: ToolStatus
    stdout: str = ""
    exit_code: int | None = None

    @property
    def succeeded(self) -> bool:
        """Say whether the tool finished with exit code 0."""
        return self.status is ToolStatus.FINISHED and self.exit_code == 0


def run_tool(command: Sequence[str], limit_s: float) -> ToolRun:
    """Run a command without a shell and return its stdout, or why there is none.

    Never raises and never takes much longer than limit_s seconds: a tool that is not installed is
    MISSING, one that does not end is killed with everything it started and is TIMED_OUT.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError:
        return ToolRun(ToolStatus.MISSING)
    try:
        stdout, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        log.warning("%s gave no answer within %g s; going on without it", command[0], limit_s)
        _give_up(process)
        return ToolRun(ToolStatus.TIMED_OUT)
    return ToolRun(ToolStatus.FINISHED, stdout.decode(errors="replace"), process.returncode)


def _give_up(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=KILL_WAIT_S)
    if process.stdout is not None:
        process.stdout.close()
