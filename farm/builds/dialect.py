"""What one llama-server's command line offers, read from its own `--help`.

Flags and defaults move between builds, so a binary is asked before it is told anything.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from farm.domain.decoding import SpeculationKind
from farm.errors import BenchmarkError

HELP_LIMIT_S = 60.0

# What -devd and its like take for no device at all.
NO_DEVICE = "none"

# "-fa,   --flash-attn [on|off|auto]       set Flash ...": names, what the flag takes, the text.
# Options start at the margin; a text's own lists stand far to the right.
_OPTION = re.compile(
    r"^ {0,12}(?P<names>--?[a-zA-Z][\w.-]*(?:,\s+--?[a-zA-Z][\w.-]*)*)"
    r"(?: (?P<takes>\S.*?))?(?:\s{2,}(?P<text>\S.*))?$"
)
# "  CUDA0: NVIDIA GeForce RTX 3090 (24124 MiB, 23800 MiB free)"
_DEVICE = re.compile(r"^ +(\S+): ", re.MULTILINE)
_REMOVED = "argument has been removed"


@dataclass(frozen=True)
class Option:
    """One option. takes: the placeholder of its value, None for a switch."""

    names: tuple[str, ...]
    takes: str | None
    text: str


@dataclass(frozen=True)
class Dialect:
    """The options of one binary by every name they have; removed ones are not among them."""

    build: str
    options: Mapping[str, Option]

    def spelling(self, *names: str) -> str | None:
        """Return the first of these names that the binary knows, None where it knows none."""
        return next((name for name in names if name in self.options), None)

    def require(self, what: str, *names: str) -> str:
        """Return the first known name. Raises BenchmarkError "unsupported"."""
        found = self.spelling(*names)
        if found is None:
            raise BenchmarkError("unsupported", f"{self.build} has no {names[0]}: {what}.")
        return found

    @property
    def kinds(self) -> frozenset[SpeculationKind]:
        """Return the kinds of speculation that the binary offers."""
        names = set(self._spec_types)
        if self.drafts_unasked:
            names.add(SpeculationKind.DRAFT_SIMPLE.value)
        return frozenset(kind for kind in SpeculationKind if kind.value in names)

    @property
    def has_spec_type(self) -> bool:
        """Say whether kinds are chosen by name."""
        return "--spec-type" in self.options

    @property
    def drafts_unasked(self) -> bool:
        """Say whether a draft model alone makes the binary speculate, as it did up to 2026-05."""
        named = SpeculationKind.DRAFT_SIMPLE.value in self._spec_types
        return not named and "-md" in self.options and "--draft-max" in self.options

    @property
    def flash_attention_takes_value(self) -> bool:
        """Say whether -fa takes on, off or auto; it was a plain switch up to 2025-08."""
        option = self.options.get("-fa")
        return option is not None and option.takes is not None

    @property
    def layers_have_names(self) -> bool:
        """Say whether -ngl takes 'auto' and 'all' beside numbers."""
        option = self.options.get("-ngl")
        return option is not None and "'all'" in option.text

    @property
    def _spec_types(self) -> list[str]:
        option = self.options.get("--spec-type")
        return re.findall(r"[\w-]+", option.takes or "") if option else []


def parse(build: str, text: str) -> Dialect:
    """Return the dialect that a `--help` text describes; `build` names it in messages."""
    options: dict[str, Option] = {}
    names: tuple[str, ...] = ()
    for line in text.splitlines():
        found = _OPTION.match(line)
        if found:
            names = tuple(re.split(r",\s+", found["names"]))
            option = Option(names, found["takes"], found["text"] or "")
        elif names and line.startswith(" "):
            old = options[names[0]]
            option = Option(old.names, old.takes, f"{old.text} {line.strip()}".strip())
        else:
            names = ()
            continue
        options |= dict.fromkeys(names, option)
    kept = {name: option for name, option in options.items() if _REMOVED not in option.text}
    return Dialect(build, kept)


@lru_cache(maxsize=16)
def ask(build: str, binary: Path) -> Dialect:
    """Return the dialect of a binary. Raises BenchmarkError "load-failed" where it has none."""
    dialect = parse(build, _said(binary, "--help"))
    if "--port" not in dialect.options:
        raise BenchmarkError("load-failed", f"{binary} --help is not that of a llama-server.")
    return dialect


def require_devices(binary: Path, names: str) -> None:
    """Raise BenchmarkError "unsupported", with the devices there are, where one is not here.

    names: with commas between them, as in `--list-devices`, or "none".
    """
    if names == NO_DEVICE:
        return
    there = _DEVICE.findall(_said(binary, "--list-devices"))
    for name in names.split(","):
        if name not in there:
            raise BenchmarkError(
                "unsupported",
                f"There is no device {name} for the draft here; there is "
                f"{', '.join([*there, NO_DEVICE])}.",
            )


def _said(binary: Path, question: str) -> str:
    try:
        done = subprocess.run(
            [str(binary), question],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=HELP_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchmarkError("load-failed", f"{binary} does not run here: {error}.") from None
    return done.stdout + done.stderr
