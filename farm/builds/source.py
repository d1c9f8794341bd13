"""The source that llama-cpp-python is compiled from, and what the tests read out of it.

Run as `python -m farm.builds.source`: it prints the folder of a llama.cpp tree that holds the
vocabulary-only models of many families, fetching them once.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from farm import paths
from farm.builds.recipe import Pin, read_pin
from farm.builds.wheel import engine_lock
from farm.errors import InfrastructureError, SpecfarmError

VOCABULARIES = "vendor/llama.cpp/models/ggml-vocab-"


def download(pin: Pin, folder: Path, pip: Sequence[str]) -> list[str]:
    """Return the command that downloads the pinned source distribution into `folder`."""
    requirements = folder / "requirements.txt"
    requirements.write_text(pin.requirement + "\n")
    command = [*pip, "download", "-v", "--no-deps", "--no-binary", "llama-cpp-python"]
    return [*command, "-r", str(requirements), "-d", str(folder)]


@contextmanager
def opened(sdist: Path) -> Iterator[tarfile.TarFile]:
    """Open a source distribution, whose digest pip has checked.

    Members that would land outside are refused where Python can do that: from 3.11.4 on.
    """
    with tarfile.open(sdist) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
        yield archive


def _fetch(pin: Pin, folder: Path, pip: Sequence[str]) -> Path:
    """Download the source distribution. Raises InfrastructureError."""
    command = download(pin, folder, pip)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = next(folder.glob("llama_cpp_python-*.tar.gz"), None)
    if done.returncode or found is None:
        reason = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise InfrastructureError(
            f"The source of llama-cpp-python {pin.version} could not be fetched: {reason[-1]}"
        )
    return found


def vocabularies(pin: Pin, store: Path, pip: Sequence[str] = (sys.executable, "-m", "pip")) -> Path:
    """Return a llama.cpp folder with the source's vocabulary-only models, fetched once.

    It appears only when complete. Raises InfrastructureError.
    """
    target = store / pin.version
    if not target.is_dir():
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=store) as work:
            sdist = _fetch(pin, Path(work), pip)
            unpacked = Path(work) / "unpacked"
            with opened(sdist) as archive:
                for member in archive:
                    # The first folder is named after the release.
                    member.name = member.name.partition("/")[2]
                    if member.isfile() and member.name.startswith(VOCABULARIES):
                        archive.extract(member, unpacked)
            if not unpacked.is_dir():
                raise InfrastructureError(
                    f"The source of llama-cpp-python {pin.version} holds no vocabulary models."
                )
            if not target.is_dir():
                shutil.move(unpacked, target)
    return target / "vendor" / "llama.cpp"


def main() -> None:
    """Print the llama.cpp folder."""
    try:
        pin = read_pin(engine_lock())
        print(vocabularies(pin, paths.cache() / "sources"))
    except SpecfarmError as error:
        print(f"specfarm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"specfarm: {error}", file=sys.stderr)
        sys.exit(InfrastructureError.exit_code)


if __name__ == "__main__":
    main()
