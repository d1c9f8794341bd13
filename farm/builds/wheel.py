"""Compile the pinned llama-cpp-python for this machine once, keep the wheel, and install it.

The package index has its source only, and the compile takes minutes, so the wheel is kept in
`cache()/wheels/<key>/` and used again as long as nothing that shapes the machine code changes.
`CMAKE_ARGS` from the environment (say `-DGGML_CUDA=on`) is added to the farm's own options.

Run as `python -m farm.builds.wheel`; exit codes are those of `farm.errors`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from farm import paths
from farm.builds.compile import (
    CompileError,
    announce,
    compile_env,
    compile_log,
    exit_on_sigterm,
    kept,
    progress,
    say,
)
from farm.builds.recipe import CMAKE_INCLUDE, Pin, Recipe, describe, read_pin
from farm.errors import InfrastructureError, SpecfarmError

ENGINE_LOCK = "requirements-engine.lock"

# Measured: 99 s on two server cores, CPU backend only.
_COMPILE_CORE_SECONDS = 200


def engine_lock() -> Path:
    """Return the lock that pins llama-cpp-python; it lies beside `configs`, in a checkout and in
    an installed package alike."""
    return paths.resource("configs").parent / ENGINE_LOCK


def ensure_wheel(
    recipe: Recipe,
    pin: Pin,
    store: Path,
    console: Console,
    pip: Sequence[str] = (sys.executable, "-m", "pip"),
) -> Path:
    """Return the wheel for `recipe` from `store`, compiling it when it is not there yet.

    A folder appears under its key only when complete; of a compile that failed or was
    interrupted only the log stays. Raises CompileError.
    """

    def make(partial: Path) -> None:
        _compile(recipe, pin, partial, store / f"{recipe.key}.log", console, pip)
        (partial / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")

    return kept(store / recipe.key, console, _wheel_in, make)


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
    what = f"llama.cpp for this machine (llama-cpp-python {pin.version})"
    announce(console, what, _COMPILE_CORE_SECONDS)
    # pip unpacks and compiles in a temporary folder of ours: a killed compile leaves nothing there
    # either, and the path handed to CMake does not depend on where the checkout lies.
    with tempfile.TemporaryDirectory(prefix="specfarm-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        include = Path(shutil.copy(CMAKE_INCLUDE, work))
        requirements = work / "requirements.txt"
        requirements.write_text(pin.requirement + "\n")
        ours = ("-DLLAVA_BUILD=OFF", f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={include}")
        env = compile_env() | {
            "CMAKE_ARGS": shlex.join((*ours, *recipe.cmake_args)),
            "TMPDIR": folder,
        }
        # pip's own wheel cache knows nothing of CMAKE_ARGS and would hand back another recipe's.
        command = [*pip, "wheel", "-v", "--no-cache-dir", "--no-deps"]
        command += ["--no-binary", "llama-cpp-python", "-r", str(requirements), "-w", str(into)]
        with compile_log(log) as output, progress(console) as show:
            status = output.run(command, env, show)
    if status:
        what = "did not compile" if output.started else "could not be fetched and configured"
        raise CompileError(
            f"llama-cpp-python {pin.version} {what} (pip ended with {status}); "
            f"its first errors and last lines are above, the whole log is {log}",
            output.tail,
            log,
        )


def _wheel_in(folder: Path) -> Path | None:
    return next(folder.glob("*.whl"), None)


def main() -> None:
    """Compile or reuse the pinned wheel, install it, and say so."""
    console = Console(stderr=True)
    exit_on_sigterm()
    try:
        pin = read_pin(engine_lock())
        recipe = describe(pin, os.environ)
        if shutil.which("nvidia-smi") and not any("CUDA" in arg for arg in recipe.cmake_args):
            say(console, "To use the NVIDIA GPU here: CMAKE_ARGS=-DGGML_CUDA=on make setup")
        wheel = ensure_wheel(recipe, pin, paths.cache() / "wheels", console)
        install(wheel)
        say(console, f"llama-cpp-python {pin.version} is installed from {wheel}")
    except SpecfarmError as error:
        if isinstance(error, CompileError):
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
