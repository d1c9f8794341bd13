"""llama-server and its companions: compiled here once, or a folder of them that is here already.

A compile takes llama.cpp from the source package of the pinned llama-cpp-python, which vendors all
of it, so that server and in-process engine decode with the same commit. Every build has a
`manifest.json` in a folder of its own under `cache()/builds`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from farm import paths
from farm.builds.artefact import BINARIES, SERVER, examine
from farm.builds.compile import (
    CompileError,
    CompileLog,
    announce,
    compile_env,
    compile_log,
    kept,
    progress,
)
from farm.builds.recipe import CMAKE_INCLUDE, Pin, Recipe, describe, read_pin
from farm.builds.source import download, opened
from farm.builds.wheel import engine_lock
from farm.errors import InfrastructureError, UserError

MANIFEST = "manifest.json"
FOLDER_VARIABLE = "FARM_LLAMA_TOOLS"

# One file each: they run from wherever they lie, and no library of another build can slip under.
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)
_VENDORED = "vendor/llama.cpp"
_COMMIT_FILE = f".git/modules/{_VENDORED}/HEAD"
_COMMIT_DIGITS = 9

# Measured: 4.5 min on two server cores, CPU backend only.
_COMPILE_CORE_SECONDS = 540


@dataclass(frozen=True)
class ToolBuild:
    """A build that is here. cmake_args is () where it was not compiled here; made_at is in seconds
    since the epoch; origin says where the binaries come from."""

    folder: Path
    commit: str
    number: int
    digest: str
    compiler: str
    cmake_args: tuple[str, ...]
    origin: str
    made_at: float
    binaries: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return what jobs call it: llama.cpp's own numbers repeat, commit and digest don't."""
        return f"{SERVER}=={self.commit}-{self.digest[:8]}"

    def path(self, binary: str) -> Path:
        """Return where one of its binaries lies. Raises UserError where it has none."""
        if binary not in self.binaries:
            raise UserError(f"The build in {self.folder} has no {binary}.")
        return self.folder / binary


def installed() -> list[ToolBuild]:
    """Return the builds that are here, the newest first; what FARM_LLAMA_TOOLS names leads.

    A build whose folder is gone is left out.
    """
    found = [_read(manifest) for manifest in _store().glob(f"*/{MANIFEST}")]
    present = [build for build in found if build is not None]
    present.sort(key=lambda build: build.made_at, reverse=True)
    named = os.environ.get(FOLDER_VARIABLE)
    builds = [_described(Path(named)), *present] if named else present
    return list({build.name: build for build in reversed(builds)}.values())[::-1]


def newest() -> ToolBuild:
    """Return the first of `installed`. Raises UserError where there is none."""
    for build in installed():
        return build
    raise UserError(
        f"No {SERVER} is here; 'farm builds compile' makes one, 'farm builds add FOLDER' takes one "
        "that you have."
    )


def find(name: str) -> ToolBuild | None:
    """Return the build of that name, None where it is not here."""
    return next((build for build in installed() if build.name == name), None)


def add(folder: Path) -> ToolBuild:
    """Register a folder of binaries where it lies. Raises UserError where none runs there."""
    build = _described(folder.expanduser().resolve())
    place = _store() / f"added-{build.digest[:16]}"
    place.mkdir(parents=True, exist_ok=True)
    written = place / f"{MANIFEST}.partial"
    written.write_text(_manifest(build) + "\n")
    written.replace(place / MANIFEST)
    return build


def ensure(console: Console) -> ToolBuild:
    """Return a build, compiling one only where none is here."""
    return next(iter(installed()), None) or compile_tools(console)


def compile_tools(
    console: Console, pip: Sequence[str] = (sys.executable, "-m", "pip"), lock: Path | None = None
) -> ToolBuild:
    """Return the pinned build, compiling it where it is not here. Raises CompileError.

    Of a compile that failed or was interrupted only the log stays.
    """
    pin = read_pin(lock or engine_lock())
    recipe = describe(pin, os.environ)
    key = _key(recipe)
    log = _store() / f"{key}.log"

    def make(partial: Path) -> None:
        _compile(recipe, pin, partial, log, console, pip)
        origin = f"llama-cpp-python=={pin.version}"
        args = (*OPTIONS, *recipe.cmake_args)
        build = dataclasses.replace(_described(partial), cmake_args=args, origin=origin)
        (partial / MANIFEST).write_text(_manifest(build, in_place=True) + "\n")

    return kept(_store() / key, console, lambda folder: _read(folder / MANIFEST), make)


def _compile(
    recipe: Recipe, pin: Pin, into: Path, log: Path, console: Console, pip: Sequence[str]
) -> None:
    what = f"{', '.join(BINARIES)} (llama.cpp of llama-cpp-python {pin.version})"
    announce(console, what, _COMPILE_CORE_SECONDS)
    with (
        tempfile.TemporaryDirectory(prefix="specfarm-", ignore_cleanup_errors=True) as folder,
        compile_log(log) as output,
        progress(console) as show,
    ):
        work = Path(folder)
        env = compile_env() | {"TMPDIR": folder}
        command = download(pin, work, pip)
        _step(output, output.run(command, env, show), "could not be fetched")
        source = _unpack(work)
        include = Path(shutil.copy(CMAKE_INCLUDE, work))
        build = work / "build"
        configure = ["cmake", "-S", str(source / _VENDORED), "-B", str(build)]
        configure += ["-G", "Ninja"] if shutil.which("ninja") else []
        configure += [*OPTIONS, f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={include}"]
        configure += [*_commit_option(source), *recipe.cmake_args]
        make = ["cmake", "--build", str(build), "--target", *BINARIES]
        try:
            _step(output, output.run(configure, env, show), "could not be configured")
            _step(output, output.run(make, env, show), "did not compile")
        except FileNotFoundError:
            raise InfrastructureError(
                "cmake is not installed; `sudo apt-get install cmake` on Debian or Ubuntu, "
                "`brew install cmake` on macOS"
            ) from None
        for binary in BINARIES:
            shutil.copy2(build / "bin" / binary, into)


def _step(output: CompileLog, status: int, failure: str) -> None:
    if status:
        raise CompileError(
            f"llama.cpp {failure} (exit status {status}); its first errors and last lines are "
            f"above, the whole log is {output.path}",
            output.tail,
            output.path,
        )


def _unpack(work: Path) -> Path:
    """Unpack what pip downloaded; return the folder of the source."""
    for archive in work.glob("*.tar.gz"):
        with opened(archive) as tar:
            tar.extractall(work / "source")
        for source in (work / "source").iterdir():
            if (source / _VENDORED).is_dir():
                return source
    raise InfrastructureError(
        "The source package of llama-cpp-python holds no vendored llama.cpp; pin another release"
    )


def _commit_option(source: Path) -> tuple[str, ...]:
    """Return the commit, which llama.cpp itself only finds where git is installed."""
    try:
        commit = (source / _COMMIT_FILE).read_text().strip()
    except OSError:
        return ()
    return (f"-DLLAMA_BUILD_COMMIT={commit[:_COMMIT_DIGITS]}",) if commit.isalnum() else ()


def _key(recipe: Recipe) -> str:
    text = json.dumps([asdict(recipe), OPTIONS, BINARIES], sort_keys=True)
    return f"{recipe.version}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _described(folder: Path) -> ToolBuild:
    artefact = examine(folder)
    return ToolBuild(
        folder=folder,
        commit=artefact.commit,
        number=artefact.number,
        digest=artefact.digest,
        compiler=artefact.compiler,
        cmake_args=(),
        origin=f"folder {folder}",
        made_at=time.time(),
        binaries=artefact.binaries,
    )


def _manifest(build: ToolBuild, *, in_place: bool = False) -> str:
    # A compiled build lies beside its manifest, and moves with it.
    folder = None if in_place else str(build.folder)
    return json.dumps(asdict(build) | {"folder": folder}, indent=2)


def _read(manifest: Path) -> ToolBuild | None:
    try:
        values = json.loads(manifest.read_text())
        folder = Path(values["folder"]) if values["folder"] else manifest.parent
        tuples = {name: tuple(values[name]) for name in ("cmake_args", "binaries")}
        build = ToolBuild(**values | tuples | {"folder": folder})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return build if (build.folder / SERVER).is_file() else None


def _store() -> Path:
    return paths.cache() / "builds"
