"""Fetching the source with a stand-in for pip: what is fetched is real only in the set-up."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import pytest

from farm.builds.recipe import Pin
from farm.builds.source import vocabularies
from farm.errors import InfrastructureError

PIN = Pin("1.2.3", "llama-cpp-python==1.2.3")


def pip_with(tmp_path: Path, files: dict[str, bytes]) -> tuple[str, ...]:
    """Return a `pip` that downloads an archive of these files."""
    archive = tmp_path / "llama_cpp_python-1.2.3.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"llama_cpp_python-1.2.3/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    program = tmp_path / "pip.py"
    program.write_text(
        "import shutil, sys\n"
        "assert sys.argv[1] == 'download'\n"
        f"shutil.copy({str(archive)!r}, sys.argv[sys.argv.index('-d') + 1])\n"
    )
    return (sys.executable, str(program))


BROKEN_PIP = (sys.executable, "-c", "import sys; sys.exit('no such release')")
FILES = {
    "vendor/llama.cpp/models/ggml-vocab-one.gguf": b"GGUF",
    "vendor/llama.cpp/src/llama.cpp": b"code",
}


def test_only_the_vocabularies_are_kept_and_fetched_once(tmp_path: Path) -> None:
    folder = vocabularies(PIN, tmp_path / "store", pip_with(tmp_path, FILES))
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["ggml-vocab-one.gguf"]
    assert vocabularies(PIN, tmp_path / "store", BROKEN_PIP) == folder


def test_a_failed_download_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match=r"1\.2\.3 could not be fetched: no such release"):
        vocabularies(PIN, tmp_path / "store", BROKEN_PIP)
    assert list((tmp_path / "store").iterdir()) == []


def test_a_source_without_vocabularies_is_refused(tmp_path: Path) -> None:
    pip = pip_with(tmp_path, {"README.md": b"nothing"})
    with pytest.raises(InfrastructureError, match="holds no vocabulary models"):
        vocabularies(PIN, tmp_path / "store", pip)
