"""Reading a server's Prometheus counters of speculation: llama-server's and vLLM's share names."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from dataclasses import dataclass

_LINE = re.compile(r"^(?:llamacpp:|vllm:)?(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_POSITION = re.compile(r'(?:^|,)position="(\d+)"')
_GENERATED = ("generation_tokens_total", "tokens_predicted_total")
_DRAFTS = "spec_decode_num_drafts_total"
_DRAFTED = "spec_decode_num_draft_tokens_total"
_ACCEPTED = "spec_decode_num_accepted_tokens_total"
_PER_POSITION = "spec_decode_num_accepted_tokens_per_pos_total"


@dataclass(frozen=True)
class Counters:
    """A server's totals so far, over all of its engines and requests. None is what it does not
    count: vLLM has no counters of speculation where it does not speculate, older llama-servers have
    none at all. accepted_per_position is () before anything was drafted."""

    generated: int | None
    drafts: int | None
    drafted: int | None
    accepted: int | None
    accepted_per_position: tuple[int, ...]


def _samples(text: str) -> dict[tuple[str, str], float]:
    """Return the samples of an exposition by (name, position label or ""), engines added up."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for name, labels, value in _LINE.findall(text):
        position = _POSITION.search(labels)
        with contextlib.suppress(ValueError):
            found[name, position[1] if position else ""] += float(value)
    return dict(found)


def rounds_of(generated: int, drafts: int, accepted: int) -> int:
    """Return how many passes over the target made the tokens after the first.

    A round without a draft yields one token; one with a draft what it accepts and one more. Text
    that ends inside a round leaves tokens over, and never fewer than no plain rounds.
    """
    return drafts + max(generated - 1 - drafts - accepted, 0)


def difference(after: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    """Return what counters per position gained; they start when something is first drafted."""
    padded = (*before, *(0 for _ in after[len(before) :]))
    return tuple(now - then for now, then in zip(after, padded, strict=True))


def read_counters(text: str) -> Counters:
    """Return what `/metrics` counts."""
    found = _samples(text)
    positions: list[int] = []
    while (count := found.get((_PER_POSITION, str(len(positions))))) is not None:
        positions.append(int(count))

    def total(*names: str) -> int | None:
        return next((int(found[name, ""]) for name in names if (name, "") in found), None)

    return Counters(
        total(*_GENERATED), total(_DRAFTS), total(_DRAFTED), total(_ACCEPTED), tuple(positions)
    )
