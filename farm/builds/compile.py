"""Running a compile that takes minutes: progress, a log, nothing half-written, one at a time."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from farm.errors import InfrastructureError

_TAIL_LINES = 15
_ERROR_LINES = 5
_STOP_TIMEOUT_S = 10

_NINJA_STEP = re.compile(r"^\s*\[(\d+)/(\d+)\]")
_MAKE_STEP = re.compile(r"^\s*\[\s*(\d+)%\]")
_ERROR = re.compile(r"\b(?:fatal )?error: |CMake Error")

T = TypeVar("T")


class CompileError(InfrastructureError):
    """The compile failed; `tail` holds the first errors in `log` and its last lines."""

    def __init__(self, message: str, tail: str, log: Path) -> None:
        super().__init__(message)
        self.tail = tail
        self.log = log


class CompileLog:
    """What a compile printed: all of it in `path`, what matters when it fails in `tail`."""

    def __init__(self, path: Path, out: TextIO) -> None:
        self.path = path
        self.started = False
        self._out = out
        # Compilers run side by side and warn in thousands of lines: the first error is rarely last.
        self._errors: list[str] = []
        self._last: deque[str] = deque(maxlen=_TAIL_LINES)

    @property
    def tail(self) -> str:
        """Return the first errors and the last lines."""
        return "".join((*self._errors, *self._last))

    def run(
        self, command: Sequence[str], env: Mapping[str, str], show: Callable[[float], None]
    ) -> int:
        """Run a command to its end and return its status; `show` gets the share that is done.

        Leaving early ends the command with all its children. Output goes to the log.
        """
        with _running(command, env) as process:
            assert process.stdout is not None
            for line in process.stdout:
                self._out.write(line)
                self._last.append(line)
                if len(self._errors) < _ERROR_LINES and _ERROR.search(line):
                    self._errors.append(line)
                if (fraction := fraction_done(line)) is not None:
                    self.started = True
                    show(fraction)
            return process.wait()


@contextlib.contextmanager
def compile_log(path: Path) -> Iterator[CompileLog]:
    """Open a fresh log."""
    with path.open("w") as out:
        yield CompileLog(path, out)


def kept(
    target: Path,
    console: Console,
    find: Callable[[Path], T | None],
    make: Callable[[Path], None],
) -> T:
    """Return what `find` finds in the folder `target`, having `make` fill it where it is not there.

    The folder appears only when complete. Whoever comes second waits for the first. Raises
    InfrastructureError where `make` left nothing that `find` finds.
    """
    store = target.parent
    store.mkdir(parents=True, exist_ok=True)
    with _locked(store / f"{target.name}.lock", console):
        if (found := find(target)) is not None:
            say(console, f"Using what was compiled before, in {target}")
            return found
        partial = store / f"{target.name}.partial"
        for left_over in (partial, target):
            shutil.rmtree(left_over, ignore_errors=True)
        partial.mkdir()
        try:
            make(partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if (found := find(target)) is not None:
            return found
        raise InfrastructureError(f"The compile reported success but left nothing in {target}")


def fraction_done(line: str) -> float | None:
    """Return how much of the compile `line` of ninja's or make's output reports done, 0 to 1."""
    if step := _NINJA_STEP.match(line):
        return int(step[1]) / int(step[2]) if int(step[2]) else None
    if step := _MAKE_STEP.match(line):
        return int(step[1]) / 100
    return None


@contextlib.contextmanager
def progress(console: Console) -> Iterator[Callable[[float], None]]:
    """Show a live bar on a terminal, a line every 10 % elsewhere."""
    if console.is_terminal:
        columns = (TextColumn("compiling"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=1.0)
            yield lambda fraction: bar.update(task, completed=fraction)
        return
    told = 0

    def tell(fraction: float) -> None:
        nonlocal told
        if (tenths := int(fraction * 10)) > told:
            told = tenths
            say(console, f"compiling: {tenths * 10} %")

    yield tell


def compile_env() -> dict[str, str]:
    """Return this environment without the flags and the job server of an outer `make`."""
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    env.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(cores()))
    return env


def cores() -> int:
    """Return how many cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def say(console: Console, text: str) -> None:
    """Print a plain line."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def announce(console: Console, what: str, core_seconds: float) -> None:
    """Say what is about to be compiled and how long that takes on this machine's cores."""
    minutes = math.ceil(core_seconds / cores() / 60)
    say(
        console,
        f"Compiling {what}: about {minutes} min on {cores()} cores, this once; an accelerator "
        "backend takes longer",
    )


def exit_on_sigterm() -> None:
    """Turn SIGTERM into an exit that runs `finally`; else a compile would go on without us."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


@contextlib.contextmanager
def _running(command: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run `command` in a session of its own; leaving early ends it with all its children."""
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def _locked(path: Path, console: Console) -> Iterator[None]:
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(console, "Another process is compiling the same; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
