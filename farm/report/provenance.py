"""Conditions in words: what a result was measured under, and what tells two of them apart."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from farm.domain.hardware import GIB
from farm.domain.provenance import Conditions, flat
from farm.report.wording import NOT_MEASURED, plain
from farm.services.job_results import Comparison

UNKNOWN = "conditions not recorded"
# A label that names more than this is no label; `farm results diff` has the rest.
MAX_NAMED = 3
DIGEST_DIGITS = 12

# The last words of a fact's dotted name -> what people call it.
NAMES = {
    "os_release": "OS",
    "driver_version": "driver",
    "cpu_governor": "governor",
    "power_source": "power",
    "build_commit": "commit",
    "build_digest": "build digest",
    "target_digest": "target digest",
    "draft_digest": "draft digest",
}
# Where names are llama.cpp's own, and parts of them that say nothing to a reader.
_THEIRS = ("parameters.", "target.", "draft.", "command.", "request.", "variables.")
_SILENT = {"parameters", "command", "target", "variables"}


def fact_name(name: str) -> str:
    """Return a fact's dotted name in a reader's words: "governor", "-ub", "context n_ctx"."""
    parts = name.split(".")
    if name.startswith(_THEIRS):
        *where, last = parts
        return plain(" ".join([*(part for part in where if part not in _SILENT), last]))
    return plain(" ".join(NAMES.get(part, part.replace("_", " ")) for part in parts))


def fact_text(name: str, value: Any) -> str:
    """Return a fact's value on one line, digests short."""
    if value is None:
        return NOT_MEASURED
    if name.endswith("_bytes"):
        return f"{value / GIB:.1f} GiB"
    text = f"{value:.6g}" if isinstance(value, float) else plain(str(value))
    return text[:DIGEST_DIGITS] if name.endswith(("digest", "prompts")) else text or "none"


def whole_commands(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts with command lines as they are typed, not as their words."""
    return {
        key: whole_commands(value)
        if isinstance(value, Mapping)
        else shlex.join(value)
        if key == "command"
        else value
        for key, value in facts.items()
    }


def comparison_sentence(found: Comparison, a: int, b: int) -> str:
    """Say whether two jobs' results can be compared, and why."""
    if found.comparable is None:
        return (
            f"Not known to be comparable: job {a} or job {b} was measured before conditions were "
            "recorded; measure it again under another label."
        )
    if found.comparable:
        return "Comparable: the same conditions and the same prompts."
    named = [
        f"{fact_name(name)} ({fact_text(name, one)}, {fact_text(name, other)})"
        for name, (one, other) in found.conditions.items()
    ]
    more = [f"{len(named) - MAX_NAMED} more"] * (len(named) > MAX_NAMED)
    return f"Not comparable, for these differ: {', '.join([*named[:MAX_NAMED], *more])}."


def system_text(conditions: Conditions | None) -> str:
    """Return what the machine was like: OS, kernel, driver, governor, power."""
    if conditions is None:
        return UNKNOWN
    parts = [
        plain(conditions.os_release or "OS not reported"),
        f"kernel {plain(conditions.kernel or 'not reported')}",
        *_if_known("driver", conditions.driver_version),
        *_if_known("governor", conditions.cpu_governor),
        *_if_known("power", conditions.power_source),
    ]
    return ", ".join(parts)


def build_text(conditions: Conditions | None) -> str:
    """Return the commit and the libraries beside the build; "" where they are not recorded."""
    if conditions is None:
        return ""
    libraries = [f"{name} {version}" for name, version in sorted(conditions.libraries.items())]
    commit = f"commit {conditions.build_commit}" if conditions.build_commit else "commit unknown"
    return plain(", ".join([commit, *libraries]))


def told_apart(several: Sequence[Conditions | None]) -> list[str]:
    """Return for each of several conditions what it has and the others don't: "governor powersave".

    Texts of different conditions differ: where the first few facts do not tell them apart, their
    digests do.
    """
    facts = [flat(asdict(one)) if one else {} for one in several]
    names = dict.fromkeys(name for one in facts for name in one)
    known = [one for one in facts if one]
    differing = [name for name in names if len({str(one.get(name)) for one in known}) > 1]
    texts = [
        UNKNOWN if one is None else _named(fact, differing)
        for one, fact in zip(several, facts, strict=True)
    ]
    unclear = len(set(texts)) < len(set(several))
    return [
        f"{text}, conditions {one.digest[:8]}".removeprefix(", ") if one and unclear else text
        for text, one in zip(texts, several, strict=True)
    ]


def _named(facts: Mapping[str, Any], differing: Sequence[str]) -> str:
    named = [f"{fact_name(name)} {fact_text(name, facts.get(name))}" for name in differing]
    more = [f"{len(named) - MAX_NAMED} more"] * (len(named) > MAX_NAMED)
    return ", ".join([*named[:MAX_NAMED], *more])


def _if_known(name: str, value: str | None) -> list[str]:
    return [] if value is None else [f"{name} {plain(value)}"]
