"""The compile itself is not run here: what surrounds it is, with a pip that fails on purpose."""

from __future__ import annotations

import fcntl
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from farm.builds import compile as compiling
from farm.builds import recipe as recipes
from farm.builds import wheel
from farm.builds.compile import CompileError
from farm.builds.recipe import Pin, Recipe
from farm.errors import InfrastructureError, UserError

ROOT = Path(__file__).resolve().parents[3]
NO_PIP = ("/nonexistent/pip",)

# Recorded from `pip wheel -v`, the compile commands shortened.
NINJA_OUTPUT = """\
  -- Build files have been written to: /tmp/tmp7wyqjf88/build
  *** Building project with Ninja...
  [1/83] /usr/bin/g++ -DGGML_BUILD -DGGML_SCHED_MAX_COPIES=4 -DGGML_SHARED
      inlined from 'void {anonymous}::Unroll<n>::operator()(const Func&, Args ...) const [with n]'
  [77/83] /usr/bin/g++  -Ivendor/llama.cpp/vendor/hash/.. -O3 -DNDEBUG
  [83/83] /usr/bin/cmake -E cmake_symlink_library bin/libllama.so.0.5.0  bin/libllama.so.0
  *** Making wheel...
"""
MAKE_OUTPUT = """\
  [  0%] Building C object vendor/llama.cpp/ggml/src/CMakeFiles/ggml-base.dir/ggml.c.o
  [ 42%] Building CXX object vendor/llama.cpp/src/CMakeFiles/llama.dir/llama.cpp.o
  [100%] Built target llama
"""

# Prints as a real failing compile does, after noting what it was given.
FAILING_PIP = """\
#!{python}
import os, pathlib, sys
into = pathlib.Path(sys.argv[sys.argv.index("-w") + 1])
(into / "half.whl").write_text("half")
pathlib.Path({notes!r}).write_text(os.environ["CMAKE_ARGS"] + "\\n" + os.environ["TMPDIR"])
print({output!r}, end="")
print("  ggml.c:7:1: error: unknown type name 'oops'")
for number in range(100):
    print(f"  warning {{number}}")
print("  ninja: build stopped: subcommand failed.")
sys.exit(1)
"""


def quiet() -> Console:
    return Console(file=io.StringIO())


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def fake_compiler(folder: Path, version: str) -> dict[str, str]:
    """Return an environment whose compilers say `version`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("cc", "c++"):
        (folder / name).write_text(f"#!/bin/sh\necho '{name} {version}'\n")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder)}


@pytest.fixture
def pin() -> Pin:
    return Pin("0.3.36", "llama-cpp-python==0.3.36")


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(
        version="0.3.36",
        cmake_args=("-DGGML_CUDA=on",),
        cmake_include="",
        compile_flags=("", "", ""),
        compilers=("cc 12.2.0", "c++ 12.2.0"),
        platform="linux-x86_64 glibc 2.36",
        cpu="Some CPU avx2",
        accelerator=(),
    )


@pytest.fixture
def failing_pip(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    def make(output: str) -> tuple[str, ...]:
        script = tmp_path / "pip"
        notes = str(tmp_path / "notes")
        script.write_text(FAILING_PIP.format(python=sys.executable, notes=notes, output=output))
        return (sys.executable, str(script))

    return make


class TestPin:
    def test_lock_pins_what_the_project_requires(self) -> None:
        requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
            "dependencies"
        ]
        pin = recipes.read_pin(ROOT / wheel.ENGINE_LOCK)
        assert f"llama-cpp-python=={pin.version}" in requirements
        assert "--hash=sha256:" in pin.requirement

    @pytest.mark.parametrize("text", ["", "numpy==2.4.6\n"])
    def test_lock_without_the_pin_is_said(self, tmp_path: Path, text: str) -> None:
        lock = tmp_path / "empty.lock"
        lock.write_text(text)
        with pytest.raises(InfrastructureError, match="does not pin llama-cpp-python"):
            recipes.read_pin(lock)

    @pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
    def test_other_locks_hash_everything_and_name_no_place(self, name: str) -> None:
        text = (ROOT / name).read_text()
        requirements = re.split(r"\n(?=\S)", re.sub(r"(?m)^#.*\n", "", text))
        assert len(requirements) > 50
        assert all("--hash=sha256:" in requirement for requirement in requirements)
        assert not re.search(r"://|index-url|find-links|llama-cpp-python", text)


class TestKey:
    def test_same_recipe_same_key(self, recipe: Recipe) -> None:
        assert recipe.key == replace(recipe).key
        assert recipe.key.startswith("0.3.36-")

    @pytest.mark.parametrize(
        "change",
        [
            {"version": "0.3.37"},
            {"cmake_args": ()},
            {"compilers": ("cc 13.1.0", "c++ 13.1.0")},
            {"cpu": "Some CPU avx2 avx512f"},
            {"platform": "linux-x86_64 glibc 2.41"},
            {"compile_flags": ("-O2", "", "")},
            {"cmake_include": "# nothing left out"},
        ],
    )
    def test_key_follows_whatever_shapes_the_code(
        self, recipe: Recipe, change: dict[str, object]
    ) -> None:
        assert replace(recipe, **change).key != recipe.key  # type: ignore[arg-type]

    def test_key_follows_the_environment(self, pin: Pin, tmp_path: Path) -> None:
        env = fake_compiler(tmp_path / "a", "12.2.0")
        plain = recipes.describe(pin, env)
        assert plain.compilers == ("cc 12.2.0", "c++ 12.2.0")
        assert recipes.describe(pin, env | {"CMAKE_ARGS": "  "}).key == plain.key
        assert recipes.describe(pin, env | {"CMAKE_ARGS": "-DGGML_BLAS=on"}).key != plain.key
        assert recipes.describe(pin, fake_compiler(tmp_path / "b", "13.1.0")).key != plain.key

    def test_chosen_compiler_is_the_one_asked(self, pin: Pin, tmp_path: Path) -> None:
        env = fake_compiler(tmp_path / "default", "12.2.0")
        fake_compiler(tmp_path / "the other", "19.0.0")
        other = str(tmp_path / "the other" / "c++")
        by_variable = recipes.describe(pin, env | {"CXX": shlex.quote(other)})
        by_option = recipes.describe(
            pin, env | {"CMAKE_ARGS": shlex.quote(f"-DCMAKE_CXX_COMPILER={other}")}
        )
        assert by_variable.compilers == by_option.compilers == ("cc 12.2.0", "c++ 19.0.0")

    def test_unreadable_cmake_args_are_the_users(self, pin: Pin) -> None:
        with pytest.raises(UserError, match="CMAKE_ARGS cannot be read"):
            recipes.describe(pin, {"CMAKE_ARGS": "-DX='open"})

    def test_missing_compiler_says_what_to_install(self, pin: Pin) -> None:
        with pytest.raises(InfrastructureError) as caught:
            recipes.describe(pin, {"PATH": ""})
        assert "apt-get install g++" in str(caught.value)
        assert "xcode-select --install" in str(caught.value)

    def test_compiler_that_fails_counts_as_missing(self, pin: Pin, tmp_path: Path) -> None:
        env = fake_compiler(tmp_path, "")
        (tmp_path / "c++").write_text("#!/bin/sh\necho 'no developer tools' >&2\nexit 1\n")
        with pytest.raises(InfrastructureError, match="No working C and C"):
            recipes.describe(pin, env)

    def test_only_flags_that_shape_code_count(self) -> None:
        x86 = "fpu vme sse sse4_2 avx2 avx512_vnni fma ibrs smep md_clear amx_tile"
        assert recipes.isa_flags(x86) == ["amx_tile", "avx2", "avx512_vnni", "fma", "sse", "sse4_2"]
        assert recipes.isa_flags("fp asimd evtstrm crc32 sve i8mm") == ["asimd", "i8mm", "sve"]


class TestProgress:
    def test_reads_ninja(self) -> None:
        done = [compiling.fraction_done(line) for line in NINJA_OUTPUT.splitlines()]
        assert done == [None, None, 1 / 83, None, 77 / 83, 1.0, None]

    def test_reads_make(self) -> None:
        done = [compiling.fraction_done(line) for line in MAKE_OUTPUT.splitlines()]
        assert done == [0.0, 0.42, 1.0]

    def test_without_a_terminal_one_line_per_tenth(self) -> None:
        console = quiet()
        with compiling.progress(console) as show:
            for step in range(1, 84):
                show(step / 83)
        lines = written(console).splitlines()
        assert lines == [f"compiling: {tenth * 10} %" for tenth in range(1, 11)]


class TestEnsureWheel:
    def test_kept_wheel_is_used_without_pip(self, recipe: Recipe, pin: Pin, tmp_path: Path) -> None:
        kept = tmp_path / recipe.key / "llama_cpp_python-0.3.36-py3-none-any.whl"
        kept.parent.mkdir()
        kept.touch()
        assert wheel.ensure_wheel(recipe, pin, tmp_path, quiet(), NO_PIP) == kept

    def test_failed_compile_leaves_only_its_log(
        self,
        recipe: Recipe,
        pin: Pin,
        tmp_path: Path,
        failing_pip: Callable[[str], tuple[str, ...]],
    ) -> None:
        store = tmp_path / "my cache"
        console = quiet()
        with pytest.raises(CompileError, match="did not compile") as caught:
            wheel.ensure_wheel(recipe, pin, store, console, failing_pip(NINJA_OUTPUT))
        assert sorted(path.suffix for path in store.iterdir()) == [".lock", ".log"]
        assert str(caught.value.log) in str(caught.value)
        assert "[77/83]" in caught.value.log.read_text()
        assert "unknown type name 'oops'" in caught.value.tail
        assert caught.value.tail.endswith("build stopped: subcommand failed.\n")
        assert "compiling: 90 %" in written(console)

    def test_failure_before_the_compile_is_told_apart(
        self,
        recipe: Recipe,
        pin: Pin,
        tmp_path: Path,
        failing_pip: Callable[[str], tuple[str, ...]],
    ) -> None:
        with pytest.raises(CompileError, match="could not be fetched and configured"):
            wheel.ensure_wheel(recipe, pin, tmp_path / "cache", quiet(), failing_pip(""))

    def test_options_survive_spaces(
        self,
        recipe: Recipe,
        pin: Pin,
        tmp_path: Path,
        failing_pip: Callable[[str], tuple[str, ...]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        checkout = tmp_path / "my code"
        temporary = tmp_path / "my temp"
        checkout.mkdir()
        temporary.mkdir()
        monkeypatch.setattr(
            wheel, "CMAKE_INCLUDE", Path(shutil.copy(wheel.CMAKE_INCLUDE, checkout))
        )
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        theirs = replace(recipe, cmake_args=("-DCMAKE_PREFIX_PATH=/opt/my libs", "-DGGML_CUDA=on"))
        with pytest.raises(CompileError):
            wheel.ensure_wheel(theirs, pin, tmp_path / "cache", quiet(), failing_pip(""))
        cmake_args, pip_folder = (tmp_path / "notes").read_text().splitlines()
        include = f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={pip_folder}/llama_cpp.cmake"
        assert shlex.split(cmake_args) == ["-DLLAVA_BUILD=OFF", include, *theirs.cmake_args]
        assert list(temporary.iterdir()) == []

    def test_second_build_waits_and_takes_the_firsts_wheel(
        self, recipe: Recipe, pin: Pin, tmp_path: Path
    ) -> None:
        console = quiet()
        found: list[Path] = []
        with (tmp_path / f"{recipe.key}.lock").open("w") as first:
            fcntl.flock(first, fcntl.LOCK_EX)
            second = threading.Thread(
                target=lambda: found.append(
                    wheel.ensure_wheel(recipe, pin, tmp_path, console, NO_PIP)
                )
            )
            second.start()
            wait_for(lambda: "waiting for it" in written(console))
            kept = tmp_path / recipe.key / "x.whl"
            kept.parent.mkdir()
            kept.touch()
        second.join(timeout=10)
        assert found == [kept]

    def test_terminated_build_leaves_nothing_running_or_written(self, tmp_path: Path) -> None:
        """The process that stands for the compile would sleep on if it were not ended."""
        store = tmp_path / "store"
        pid_file = tmp_path / "pid"
        compile_stand_in = f"echo $$ > {shlex.quote(str(pid_file))}; sleep 600"
        program = textwrap.dedent(f"""
            import os
            from pathlib import Path
            from rich.console import Console
            from farm.builds import compile as compiling, wheel
            compiling.exit_on_sigterm()
            recipe = wheel.Recipe("1", (), "", (), (), "", "", ())
            pin = wheel.Pin("1", "llama-cpp-python==1")
            pip = ("/bin/sh", "-c", {compile_stand_in!r})
            wheel.ensure_wheel(recipe, pin, Path({str(store)!r}), Console(), pip)
        """)
        build = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
        try:
            wait_for(lambda: pid_file.exists() and pid_file.read_text() != "")
            build.send_signal(signal.SIGTERM)
            assert build.wait(timeout=30) == 128 + signal.SIGTERM
        finally:
            build.kill()
        wait_for(lambda: not is_running(int(pid_file.read_text())))
        assert sorted(path.suffix for path in store.iterdir()) == [".lock", ".log"]


def wait_for(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
