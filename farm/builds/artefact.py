"""What a folder of llama.cpp binaries is: its commit, its build number, the digest of its bytes."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from farm.errors import UserError

SERVER = "llama-server"
BINARIES = (SERVER, "llama-bench", "llama-speculative-simple")

_VERSION_LIMIT_S = 60
# Both formats that llama.cpp has had: `version: 9235 (d14ce3dab)` and
# `version: 0.5.0-dev (build 1, commit 0c1e570)`.
_PLAIN = re.compile(r"^version: (?P<number>\d+) \((?P<commit>\w+)\)", re.MULTILINE)
_SEMANTIC = re.compile(
    r"^version: \S+ \(build (?P<number>\d+), commit (?P<commit>\w+)\)", re.MULTILINE
)
_COMPILER = re.compile(r"^built with (?P<compiler>.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Artefact:
    """Binaries that belong together. digest: sha256 over them and the libraries beside them."""

    folder: Path
    commit: str
    number: int
    compiler: str
    digest: str
    binaries: tuple[str, ...]


@dataclass(frozen=True)
class Version:
    """What a binary's `--version` says. compiler is "" where it names none."""

    commit: str
    number: int
    compiler: str


def read_version(text: str) -> Version | None:
    """Return what `--version` printed, None where it is in neither known format."""
    found = _PLAIN.search(text) or _SEMANTIC.search(text)
    if found is None:
        return None
    compiler = _COMPILER.search(text)
    return Version(found["commit"], int(found["number"]), compiler["compiler"] if compiler else "")


def examine(folder: Path) -> Artefact:
    """Return what the binaries in a folder are. Raises UserError where no llama-server runs there.

    The folder is read again only when a file in it has changed.
    """
    files = _files(folder)
    stamp = tuple((path.name, *_stamp(path)) for path in files)
    return _examined(folder, stamp)


@lru_cache(maxsize=32)
def _examined(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> Artefact:
    files = _files(folder)
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    version = _ask_version(folder / SERVER)
    return Artefact(
        folder=folder,
        commit=version.commit,
        number=version.number,
        compiler=version.compiler,
        digest=digest.hexdigest(),
        binaries=tuple(name for name in BINARIES if (folder / name).is_file()),
    )


def _files(folder: Path) -> list[Path]:
    """Return the binaries and every shared library beside them, each file once."""
    if not os.access(folder / SERVER, os.X_OK):
        raise UserError(f"There is no {SERVER} to run in {folder}; name the folder that holds it.")
    seen: set[Path] = set()
    files = []
    for path in sorted(folder.iterdir()):
        is_library = any(part in path.name for part in (".so", ".dylib", ".dll", ".metallib"))
        real = path.resolve()
        # A release holds each library under several version names, as copies or links.
        if (path.name in BINARIES or is_library) and real.is_file() and real not in seen:
            seen.add(real)
            files.append(path)
    return files


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _ask_version(binary: Path) -> Version:
    try:
        done = subprocess.run(
            [str(binary), "--version"],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=_VERSION_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{binary} does not run here: {error}.") from None
    said = done.stderr + done.stdout
    version = read_version(said)
    if version is None:
        last = said.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise UserError(f"{binary} --version does not name a llama.cpp build: {last[0]}")
    return version
