"""What a bench child may touch: the system to read, its own code, its job's models, no network.

The rules are held by the kernel (`worker.confine`); here they are made for a job.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from farm import config, paths
from worker.confine.program import SAYS, has_cuda
from worker.probe.tool import run_tool

_ROOT = Path(__file__).resolve().parents[1]
# By -c, because a file that is run by its path finds no module beside it under -I.
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from worker.confine.program import main; main(sys.argv[2:])"
)
# Where people and services keep what is theirs.
_CLOSED = (
    "/home", "/root", "/srv", "/media", "/mnt", "/tmp", "/run/media", "/run/user", "/run/secrets",
    "/var/home", "/var/mail", "/var/spool", "/var/tmp", "/var/lib/docker", "/var/log",
)  # fmt: skip
# Where its libraries are; a model may lie beside them, or beside what holds them.
_SYSTEM = (
    "/bin", "/etc", "/gnu/store", "/lib", "/lib32", "/lib64", "/nix/store", "/opt/cuda",
    "/opt/intel", "/opt/rocm", "/sbin", "/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64",
    "/usr/libexec", "/usr/local/bin", "/usr/local/cuda", "/usr/local/lib", "/usr/local/lib64",
    "/usr/sbin", "/usr/share",
)  # fmt: skip
_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_LIMIT_S = 10.0


@dataclass(frozen=True)
class Policy:
    """What `worker.confine.program.confine` takes."""

    closed: tuple[str, ...]
    readable: tuple[str, ...]
    listable: tuple[str, ...]
    models: tuple[str, ...]
    writable: tuple[str, ...]
    port: int | None


def policy(
    models: Iterable[Path], programs: Iterable[Path] = (), port: int | None = None
) -> Policy:
    """Return what a child needs that runs these models.

    programs: other files than this interpreter that it runs or imports; their folders can be read,
    and libraries that links in these lead to.
    port: where it serves; without one it has no network at all.
    """
    files = [part for model in models for part in _parts(model)]
    folders = [folder for file in files for folder in (file.parent, file.resolve().parent)]
    own = [*_home(), paths.home(), paths.cache(), Path(config.PROJECT_FILE)]
    return Policy(
        closed=_real(*_CLOSED, *_without_system(*own, *folders)),
        readable=_real(
            sys.prefix,
            sys.base_prefix,
            _ROOT / "worker",
            *(place for program in programs for place in _needed_by(program)),
            *filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")),
        ),
        # Python looks for a package in the list of what lies there.
        listable=_real(_ROOT),
        models=_real(*files),
        writable=_real(_kernel_cache()) if has_cuda() else (),
        port=port,
    )


def confined(command: Iterable[str], rules: Policy) -> list[str]:
    """Return the command that runs another one under these rules, and first logs what holds.

    The setting `isolation = "off"` is for a machine whose drivers need more than the rules leave.
    """
    start = [sys.executable, "-I", "-S", "-c", _START, str(_ROOT)]
    wanted = asdict(rules) if config.load().isolation == "on" else None
    return [*start, json.dumps(wanted), *command]


def environment() -> dict[str, str]:
    """Return the environment for a child: without the farm's settings, which hold passwords."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    if has_cuda():
        _load_driver()
        # Its own place is in the home folder; without one it compiles kernels at every load.
        with suppress(OSError):
            _kernel_cache().mkdir(parents=True, exist_ok=True)
            kept["CUDA_CACHE_PATH"] = str(_kernel_cache())
    return kept


def held(log: str) -> str:
    """Return what held for a child, by its log: "landlock 7 + seccomp", or "none: <reason>"."""
    found = re.search(rf"^{SAYS}(.+)$", log, re.MULTILINE)
    return found[1] if found else "none: the child ended before it was confined"


def describe() -> str:
    """Return what holds on this machine, by trying it on a child that does nothing."""
    try:
        tried = subprocess.run(
            confined([sys.executable, "-I", "-S", "-c", ""], policy(())),
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"none: {error}"
    if tried.returncode:
        return f"none: a confined child ended with exit status {tried.returncode}"
    return held(tried.stderr)


def packages(*names: str) -> list[Path]:
    """Return where Python packages lie, as `policy` takes them; what is not here is left out."""
    found = (find_spec(name) for name in names)
    return [Path(spec.origin).parent for spec in found if spec and spec.origin]


def _parts(model: Path) -> list[Path]:
    """Return a model's files: llama.cpp opens the others of a split one by the first's name."""
    split = _SPLIT.search(model.name)
    if split is None:
        return [model]
    stem = model.name[: split.start()]
    count = int(split[1])
    return [model.with_name(f"{stem}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]


def _home() -> list[Path]:
    try:
        return [Path.home()]
    except RuntimeError:
        # A container's user may have none.
        return []


def _without_system(*folders: Path) -> list[str]:
    """Leave out folders that hold system libraries, or lie among them: nothing runs without."""
    system = [Path(place) for place in _real(*_SYSTEM)]
    return [
        folder
        for folder in _real(*folders)
        if not any(
            place.is_relative_to(folder) or Path(folder).is_relative_to(place) for place in system
        )
    ]


def _needed_by(program: Path) -> list[Path]:
    folder = program.resolve().parent
    beside = [folder.with_name(name) for name in ("lib", "lib64") if folder.name == "bin"]
    folders = [folder, *beside]
    return [*folders, *_linked_libraries(folders)]


def _linked_libraries(folders: Iterable[Path]) -> list[Path]:
    """Return the libraries that links lead to, and those beside them, which they may load.

    Files, because a whole folder could be somebody's home.
    """
    links = (path for folder in folders for path in folder.glob("*.so*") if path.is_symlink())
    led_to = _without_system(*{link.resolve().parent for link in links})
    apart = set(led_to) - set(_real(*folders))
    return [library for folder in apart for library in Path(folder).glob("*.so*")]


def _real(*places: str | Path) -> tuple[str, ...]:
    return tuple(sorted({os.path.realpath(place) for place in places}))


def _kernel_cache() -> Path:
    return paths.cache() / "cuda-kernels"


def _load_driver() -> None:
    """Do what CUDA does with a setuid program, which a confined process can't have."""
    if not Path("/dev/nvidia-uvm").exists():
        run_tool(["nvidia-modprobe", "-u", "-c=0"], _LIMIT_S)
