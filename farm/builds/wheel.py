"""Compile the pinned llama-cpp-python for this machine once, keep the wheel, and install it.

The package index has its source only, and the compile takes minutes, so the wheel is kept in
`cache()/wheels/<key>/` and used again as long as nothing that shapes the machine code changes.
`CMAKE_ARGS` from the environment (say `-DGGML_CUDA=on`) is added to the farm's own options.

Run as `python -m farm.builds.wheel`; exit codes are those of `farm.errors`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from farm import paths
from farm.builds.recipe import CMAKE_INCLUDE, Pin, Recipe, describe, read_pin
from farm.errors import InfrastructureError, SpecfarmError

ENGINE_LOCK = "requirements-engine.lock"

# Measured: 99 s on two server cores, CPU backend only.
_COMPILE_CORE_SECONDS = 200
_TAIL_LINES = 15
_ERROR_LINES = 5
_STOP_TIMEOUT_S = 10

_NINJA_STEP = re.compile(r"^\s*\[(\d+)/(\d+)\]")
_MAKE_STEP = re.compile(r"^\s*\[\s*(\d+)%\]")
_ERROR = re.compile(r"\b(?:fatal )?error: |CMake Error")


class WheelBuildError(InfrastructureError):
    """The compile failed; `tail` holds the first errors in `log` and its last lines."""

    def __init__(self, message: str, tail: str, log: Path) -> None:
        super().__init__(message)
        self.tail = tail
        self.log = log


def fraction_done(line: str) -> float | None:
    """Return how much of the compile `line` of ninja's or make's output reports done, 0 to 1."""
    if step := _NINJA_STEP.match(line):
        return int(step[1]) / int(step[2]) if int(step[2]) else None
    if step := _MAKE_STEP.match(line):
        return int(step[1]) / 100
    return None


def ensure_wheel(
    recipe: Recipe,
    pin: Pin,
    store: Path,
    console: Console,
    pip: Sequence[str] = (sys.executable, "-m", "pip"),
) -> Path:
    """Return the wheel for `recipe` from `store`, compiling it when it is not there yet.

    A folder appears under its key only when complete; of a compile that failed or was
    interrupted only the log stays. Raises WheelBuildError.
    """
    target = store / recipe.key
    store.mkdir(parents=True, exist_ok=True)
    with _locked(store / f"{recipe.key}.lock", console):
        if wheel := _wheel_in(target):
            _say(console, f"Using the compiled wheel in {target}")
            return wheel
        partial = store / f"{recipe.key}.partial"
        for left_over in (partial, target):
            shutil.rmtree(left_over, ignore_errors=True)
        partial.mkdir()
        try:
            _compile(recipe, pin, partial, store / f"{recipe.key}.log", console, pip)
            (partial / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if wheel := _wheel_in(target):
            return wheel
        raise InfrastructureError(f"pip reported success but left no wheel in {target}")


def install(wheel: Path) -> None:
    """Install `wheel` in the running environment and check that it loads."""
    here = Path(sys.executable).parent
    uv = shutil.which("uv", path=os.pathsep.join((str(here), os.environ.get("PATH", ""))))
    command = (
        [uv, "pip", "install", "--python", sys.executable, "--reinstall"]
        if uv
        else [sys.executable, "-m", "pip", "install", "--force-reinstall"]
    )
    _check_call([*command, "--no-deps", str(wheel)], "The compiled wheel could not be installed")
    _check_call([sys.executable, "-c", "import llama_cpp"], "The installed wheel does not load")


def _check_call(command: Sequence[str], failure: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise InfrastructureError(f"{failure}: {reason[-1]}")


def _compile(
    recipe: Recipe, pin: Pin, into: Path, log: Path, console: Console, pip: Sequence[str]
) -> None:
    cores = _cores()
    minutes = math.ceil(_COMPILE_CORE_SECONDS / cores / 60)
    _say(
        console,
        f"Compiling llama.cpp for this machine (llama-cpp-python {pin.version}): about "
        f"{minutes} min on {cores} cores, this once; an accelerator backend takes longer",
    )
    # pip unpacks and compiles in a temporary folder of ours: a killed compile leaves nothing there
    # either, and the path handed to CMake does not depend on where the checkout lies.
    with tempfile.TemporaryDirectory(prefix="specfarm-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        include = Path(shutil.copy(CMAKE_INCLUDE, work))
        requirements = work / "requirements.txt"
        requirements.write_text(pin.requirement + "\n")
        env = _compile_env(recipe, include, cores) | {"TMPDIR": folder}
        # pip's own wheel cache knows nothing of CMAKE_ARGS and would hand back another recipe's.
        command = [*pip, "wheel", "-v", "--no-cache-dir", "--no-deps"]
        command += ["--no-binary", "llama-cpp-python", "-r", str(requirements), "-w", str(into)]
        # Compilers run side by side and warn in thousands of lines: the first error is rarely last.
        errors: list[str] = []
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        started = False
        with log.open("w") as out, _progress(console) as show, _running(command, env) as process:
            assert process.stdout is not None
            for line in process.stdout:
                out.write(line)
                tail.append(line)
                if len(errors) < _ERROR_LINES and _ERROR.search(line):
                    errors.append(line)
                if (fraction := fraction_done(line)) is not None:
                    started = True
                    show(fraction)
            status = process.wait()
    if status:
        what = "did not compile" if started else "could not be fetched and configured"
        raise WheelBuildError(
            f"llama-cpp-python {pin.version} {what} (pip ended with {status}); "
            f"its first errors and last lines are above, the whole log is {log}",
            "".join((*errors, *tail)),
            log,
        )


def _compile_env(recipe: Recipe, include: Path, cores: int) -> dict[str, str]:
    ours = ("-DLLAVA_BUILD=OFF", f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={include}")
    # An inner make must not inherit the flags and the job server of `make setup`.
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    env["CMAKE_ARGS"] = shlex.join((*ours, *recipe.cmake_args))
    env.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(cores))
    return env


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
def _progress(console: Console) -> Iterator[Callable[[float], None]]:
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
            _say(console, f"compiling: {tenths * 10} %")

    yield tell


@contextlib.contextmanager
def _locked(path: Path, console: Console) -> Iterator[None]:
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(console, "Another process is compiling the same wheel; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _wheel_in(folder: Path) -> Path | None:
    return next(folder.glob("*.whl"), None)


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _terminate(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


def main() -> None:
    """Compile or reuse the pinned wheel, install it, and say so."""
    console = Console(stderr=True)
    # Without a handler SIGTERM would end this process and leave the compile running.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # The lock lies beside `configs`, in a checkout and in an installed package alike.
        pin = read_pin(paths.resource("configs").parent / ENGINE_LOCK)
        recipe = describe(pin, os.environ)
        if shutil.which("nvidia-smi") and not any("CUDA" in arg for arg in recipe.cmake_args):
            _say(console, "To use the NVIDIA GPU here: CMAKE_ARGS=-DGGML_CUDA=on make setup")
        wheel = ensure_wheel(recipe, pin, paths.cache() / "wheels", console)
        install(wheel)
        _say(console, f"llama-cpp-python {pin.version} is installed from {wheel}")
    except SpecfarmError as error:
        if isinstance(error, WheelBuildError):
            sys.stderr.write(error.tail)
        print(f"specfarm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"specfarm: {error}", file=sys.stderr)
        sys.exit(InfrastructureError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
