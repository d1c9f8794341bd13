"""What decides the machine code of a compiled llama-cpp-python: the recipe its wheel is kept by."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from farm.errors import InfrastructureError, UserError

CMAKE_INCLUDE = Path(__file__).with_name("llama_cpp.cmake")

# The order in which CMake looks (Modules/CMakeDetermine{C,CXX}Compiler.cmake).
_COMPILERS = {
    "C": ("CC", ("cc", "gcc", "clang")),
    "CXX": ("CXX", ("c++", "g++", "clang++")),
}
# What -march=native can turn into other machine code. The rest of the kernel's list (mitigations,
# power management) moves with firmware and kernel updates and must not move the key.
_ISA_FLAG = re.compile(r"sse|avx|amx|fma|f16c|bmi|asimd|sve|sme(?!p)|i8mm|bf16|fphp")
_PIN = re.compile(
    r"^llama-cpp-python==(?P<version>[^\s\\;]+)(?:[ \t]*\\\n[ \t]*--hash=\S+)*", re.MULTILINE
)


@dataclass(frozen=True)
class Pin:
    """One release of llama-cpp-python; `requirement` is pip's text for it, hashes included."""

    version: str
    requirement: str


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which machine code the wheel holds."""

    version: str
    cmake_args: tuple[str, ...]
    cmake_include: str
    compile_flags: tuple[str, ...]
    compilers: tuple[str, ...]
    platform: str
    cpu: str
    accelerator: tuple[str, ...]

    @property
    def key(self) -> str:
        """Return the name of the folder that holds this recipe's wheel."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"{self.version}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def read_pin(lock: Path) -> Pin:
    """Return the release that `lock` pins. Raises InfrastructureError when it pins none."""
    try:
        found = _PIN.search(lock.read_text())
    except FileNotFoundError:
        found = None
    if found is None:
        raise InfrastructureError(f"{lock} does not pin llama-cpp-python; run `make lock`")
    return Pin(found["version"], found[0])


def describe(pin: Pin, env: Mapping[str, str]) -> Recipe:
    """Return the recipe for `pin` on this machine.

    Raises UserError when CMAKE_ARGS cannot be read, InfrastructureError without a compiler.
    """
    try:
        cmake_args = tuple(shlex.split(env.get("CMAKE_ARGS", "")))
    except ValueError as error:
        raise UserError(f"CMAKE_ARGS cannot be read ({error}): {env['CMAKE_ARGS']}") from error
    return Recipe(
        version=pin.version,
        cmake_args=cmake_args,
        cmake_include=CMAKE_INCLUDE.read_text(),
        compile_flags=tuple(env.get(name, "") for name in ("CFLAGS", "CXXFLAGS", "LDFLAGS")),
        compilers=tuple(_compiler(language, cmake_args, env) for language in _COMPILERS),
        platform=" ".join((sysconfig.get_platform(), *platform.libc_ver())),
        cpu=_cpu(),
        accelerator=_accelerator(cmake_args, env),
    )


def isa_flags(text: str) -> list[str]:
    """Return those of the kernel's processor flags that decide what native code can use."""
    return sorted(filter(_ISA_FLAG.search, text.split()))


def _compiler(language: str, cmake_args: Sequence[str], env: Mapping[str, str]) -> str:
    """Return the first line of what the compiler that CMake will pick says of its version."""
    variable, names = _COMPILERS[language]
    candidates = [[name] for name in names]
    if env.get(variable):
        candidates = [shlex.split(env[variable])]
    chosen = re.compile(rf"-DCMAKE_{language}_COMPILER(?::\w+)?=(.+)")
    for argument in cmake_args:
        if given := chosen.fullmatch(argument):
            candidates = [[given[1]]]
    for command in candidates:
        # macOS has a `c++` that only says that the developer tools are missing: ask it.
        if version := _ask([*command, "--version"], env):
            return version.splitlines()[0]
    tried = ", ".join(shlex.join(command) for command in candidates)
    raise InfrastructureError(
        f"No working C and C++ compiler found (tried {tried}); install one with "
        "`sudo apt-get install g++` on Debian or Ubuntu, `xcode-select --install` on macOS"
    )


def _ask(command: Sequence[str], env: Mapping[str, str]) -> str:
    """Return what a command prints, or nothing when it is absent or fails."""
    program = shutil.which(command[0], path=env.get("PATH", ""))
    if program is None:
        return ""
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        brand = _ask(["sysctl", "-n", "machdep.cpu.brand_string"], os.environ)
        return brand or platform.processor()
    model = re.search(r"^model name\s*:\s*(.*)", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)", text, re.MULTILINE)
    name = model[1] if model else platform.machine()
    return " ".join([name, *isa_flags(flags[1] if flags else "")])


def _accelerator(cmake_args: Sequence[str], env: Mapping[str, str]) -> tuple[str, ...]:
    """Return what decides CUDA code: the tool kit, and the GPUs it compiles for by default."""
    if not any("CUDA" in argument for argument in cmake_args):
        return ()
    toolkit = {"PATH": f"{env.get('PATH', '')}{os.pathsep}/usr/local/cuda/bin"}
    return (
        _ask([env.get("CUDACXX") or "nvcc", "--version"], toolkit),
        _ask(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], env),
    )
