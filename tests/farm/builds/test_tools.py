"""Compiling and registering llama.cpp binaries. pip and cmake are stand-ins: the real compile, of
minutes, is what the engine's tests ask for where no binaries are."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from farm.builds import tools
from farm.builds.artefact import BINARIES, examine, read_version
from farm.builds.compile import CompileError
from farm.errors import UserError

COMMIT = "0c1e57098bba43ac29e6e3b677cdceebdd22334f"
VERSION = "version: 0.5.0-dev (build 1, commit 0c1e57098)\nbuilt with GNU 12.2.0 for Linux x86_64\n"

# Puts the source package where pip would, given as the first argument.
FAKE_PIP = """\
import pathlib, shutil, sys
into = pathlib.Path(sys.argv[sys.argv.index("-d") + 1])
shutil.copy(sys.argv[1], into / "llama_cpp_python-0.3.36.tar.gz")
"""

# Notes how it was called and "builds" scripts that say a version.
FAKE_CMAKE = """\
#!{python}
import pathlib, sys
notes = pathlib.Path({notes!r})
with notes.open("a") as file:
    file.write("\\n".join(sys.argv[1:]) + "\\n\\n")
if "--build" not in sys.argv:
    sys.exit({configured})
folder = pathlib.Path(sys.argv[sys.argv.index("--build") + 1]) / "bin"
folder.mkdir(parents=True)
for name in {binaries!r}:
    print("[1/1] Linking CXX executable bin/" + name)
    (folder / name).write_text("#!/bin/sh\\nprintf '{version}' >&2\\n")
    (folder / name).chmod(0o755)
"""


def quiet() -> Console:
    return Console(file=io.StringIO())


def binaries(folder: Path, version: str = VERSION) -> Path:
    """Make scripts that say a version as llama.cpp's binaries do."""
    folder.mkdir(parents=True)
    for name in BINARIES:
        (folder / name).write_text(f"#!/bin/sh\nprintf '{version}' >&2\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FARM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(tools.FOLDER_VARIABLE, raising=False)
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    return tmp_path / "cache" / "builds"


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "engine.lock"
    path.write_text("llama-cpp-python==0.3.36 \\\n    --hash=sha256:12\n")
    return path


@pytest.fixture
def pip(tmp_path: Path) -> tuple[str, ...]:
    """Return a pip that has a source package with a vendored llama.cpp."""
    source = tmp_path / "llama_cpp_python-0.3.36"
    (source / "vendor" / "llama.cpp").mkdir(parents=True)
    commit = source / ".git" / "modules" / "vendor" / "llama.cpp" / "HEAD"
    commit.parent.mkdir(parents=True)
    commit.write_text(COMMIT + "\n")
    archive = tmp_path / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, source.name)
    script = tmp_path / "pip.py"
    script.write_text(FAKE_PIP)
    return (sys.executable, str(script), str(archive))


@pytest.fixture
def cmake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a maker of a cmake; what it was told is in the file it returns."""

    def make(*, configured: int = 0) -> Path:
        notes = tmp_path / "notes"
        folder = tmp_path / "fake bin"
        folder.mkdir()
        script = folder / "cmake"
        values = {"python": sys.executable, "notes": str(notes), "binaries": BINARIES}
        version = VERSION.replace("\n", "\\\\n")
        script.write_text(FAKE_CMAKE.format(**values, version=version, configured=configured))
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return notes

    return make


class TestVersion:
    def test_reads_both_formats(self) -> None:
        plain = read_version("version: 9235 (d14ce3dab)\nbuilt with cc 13.3.0 for x86_64\n")
        assert plain is not None
        assert (plain.number, plain.commit, plain.compiler) == (
            9235,
            "d14ce3dab",
            "cc 13.3.0 for x86_64",
        )
        semantic = read_version(VERSION)
        assert semantic is not None
        assert (semantic.number, semantic.commit) == (1, "0c1e57098")

    def test_skips_what_a_backend_says_first(self) -> None:
        said = "ggml_cuda_init: found 1 CUDA devices:\n  Device 0: x\nversion: 6838 (226f295f4)\n"
        found = read_version(said)
        assert found is not None
        assert (found.number, found.compiler) == (6838, "")

    def test_anything_else_is_no_version(self) -> None:
        assert read_version("llama-server: error while loading shared libraries") is None


class TestExamine:
    def test_digest_follows_binaries_and_libraries_and_nothing_else(self, tmp_path: Path) -> None:
        folder = binaries(tmp_path / "bin")
        (folder / "libggml.so.0.25.3").write_bytes(b"library")
        (folder / "libggml.so").symlink_to("libggml.so.0.25.3")
        (folder / "README.md").write_text("one")
        first = examine(folder)
        (folder / "README.md").write_text("another")
        assert examine(folder).digest == first.digest
        (folder / "libggml.so.0.25.3").write_bytes(b"another library")
        assert examine(folder).digest != first.digest

    def test_a_folder_without_a_server_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no llama-server"):
            examine(tmp_path)

    def test_a_server_that_does_not_run_says_what_it_said(self, tmp_path: Path) -> None:
        folder = binaries(tmp_path / "bin", "libcudart.so.12: cannot open shared object file")
        with pytest.raises(UserError, match="cannot open shared object"):
            examine(folder)


class TestRegistry:
    def test_none_is_here_says_what_to_run(self) -> None:
        assert tools.installed() == []
        with pytest.raises(UserError, match="farm builds compile"):
            tools.newest()

    def test_added_folder_is_found_by_commit_and_digest(self, tmp_path: Path) -> None:
        build = tools.add(binaries(tmp_path / "release"))
        assert build.name == f"llama-server==0c1e57098-{build.digest[:8]}"
        assert tools.find(build.name) == tools.newest() == build
        assert build.path("llama-bench") == tmp_path / "release" / "llama-bench"

    def test_newest_leads_and_a_folder_added_twice_is_one(self, tmp_path: Path) -> None:
        old = tools.add(binaries(tmp_path / "old", "version: 9222 (aaaaaaaaa)\n"))
        new = tools.add(binaries(tmp_path / "new", "version: 9235 (bbbbbbbbb)\n"))
        tools.add(tmp_path / "new")
        assert [build.name for build in tools.installed()] == [new.name, old.name]

    def test_a_folder_that_is_gone_is_no_build(self, tmp_path: Path) -> None:
        folder = binaries(tmp_path / "release")
        tools.add(folder)
        folder.rename(tmp_path / "moved")
        assert tools.installed() == []

    def test_the_named_folder_leads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tools.add(binaries(tmp_path / "added", "version: 9222 (aaaaaaaaa)\n"))
        monkeypatch.setenv(tools.FOLDER_VARIABLE, str(binaries(tmp_path / "named")))
        assert [build.commit for build in tools.installed()] == ["0c1e57098", "aaaaaaaaa"]

    def test_a_broken_manifest_is_no_build(self, cache: Path) -> None:
        (cache / "x").mkdir(parents=True)
        (cache / "x" / "manifest.json").write_text('{"folder": null')
        assert tools.installed() == []


class TestCompile:
    def test_makes_a_build_with_its_manifest(
        self, pip: tuple[str, ...], cmake: Callable[..., Path], lock: Path, cache: Path
    ) -> None:
        notes = cmake()
        build = tools.compile_tools(quiet(), pip, lock)
        assert build.binaries == BINARIES
        assert build.folder.parent == cache
        assert tools.installed() == [build]
        manifest = json.loads((build.folder / "manifest.json").read_text())
        assert manifest["origin"] == "llama-cpp-python==0.3.36"
        assert manifest["number"] == 1
        assert manifest["digest"] == build.digest
        configure, compile_, _ = notes.read_text().split("\n\n")
        assert set(tools.OPTIONS) <= set(configure.splitlines())
        assert "-DLLAMA_BUILD_COMMIT=0c1e57098" in configure.splitlines()
        assert "-DCMAKE_PROJECT_llama.cpp_INCLUDE=" in configure
        assert compile_.splitlines()[2:] == ["--target", *BINARIES]

    def test_is_not_made_twice(
        self, pip: tuple[str, ...], cmake: Callable[..., Path], lock: Path
    ) -> None:
        cmake()
        build = tools.compile_tools(quiet(), pip, lock)
        assert tools.compile_tools(quiet(), ("/nonexistent/pip",), lock) == build

    def test_moves_with_the_cache(
        self,
        pip: tuple[str, ...],
        cmake: Callable[..., Path],
        lock: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        cmake()
        name = tools.compile_tools(quiet(), pip, lock).name
        (tmp_path / "cache").rename(tmp_path / "moved")
        monkeypatch.setenv("FARM_CACHE", str(tmp_path / "moved"))
        assert tools.newest().name == name
        assert tools.newest().folder.is_relative_to(tmp_path / "moved")

    def test_another_backend_is_another_build(
        self,
        pip: tuple[str, ...],
        cmake: Callable[..., Path],
        lock: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        notes = cmake()
        first = tools.compile_tools(quiet(), pip, lock)
        monkeypatch.setenv("CMAKE_ARGS", "-DGGML_BLAS=on")
        second = tools.compile_tools(quiet(), pip, lock)
        assert first.folder != second.folder
        assert second.cmake_args[-1] == "-DGGML_BLAS=on"
        assert notes.read_text().count("-DGGML_BLAS=on") == 1

    def test_a_failure_leaves_only_its_log(
        self, pip: tuple[str, ...], cmake: Callable[..., Path], lock: Path, cache: Path
    ) -> None:
        cmake(configured=1)
        with pytest.raises(CompileError, match="could not be configured"):
            tools.compile_tools(quiet(), pip, lock)
        assert sorted(path.suffix for path in cache.iterdir()) == [".lock", ".log"]


class TestCommand:
    def farm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "farm.cli.app", "builds", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def test_adds_and_lists(self, tmp_path: Path) -> None:
        folder = binaries(tmp_path / "release")
        assert self.farm("add", str(folder)).returncode == 0
        (listed,) = json.loads(self.farm("list", "--json").stdout)
        assert listed["name"].startswith("llama-server==0c1e57098-")
        assert listed["folder"] == str(folder)

    def test_a_folder_without_a_server_is_the_users_mistake(self, tmp_path: Path) -> None:
        done = self.farm("add", str(tmp_path))
        assert done.returncode == UserError.exit_code
        assert done.stderr.startswith("farm: There is no llama-server")
