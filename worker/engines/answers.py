"""What an endpoint's answer comes down to, whatever its API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from farm.endpoints.connection import message_in
from farm.errors import BenchmarkError


@dataclass(frozen=True)
class Drafts:
    """What a server counted of one request. None is what it does not report. rounds: verification
    steps with a draft."""

    drafted: int
    accepted: int
    rounds: int | None = None
    accepted_per_position: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Token:
    """A generated token's text, and the log-probabilities of the best ones in its place."""

    text: str
    best: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    """One answered request. ids: None where the server does not return all of them. drafts: None
    where it does not report any. tokens: where alternatives were asked for and given."""

    text: str
    ids: tuple[int, ...] | None
    prompt_tokens: int
    generated_tokens: int
    prompt_ms: float
    decode_ms: float
    drafts: Drafts | None
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Event:
    """One piece of an answer, and when it was here (seconds after the request was sent)."""

    at_s: float
    payload: dict[str, Any]


def payload_of(piece: bytes) -> dict[str, Any]:
    """Return one JSON object of an answer. Raises BenchmarkError "garbage", "decode-failed"."""
    try:
        payload = json.loads(piece)
    except ValueError:
        payload = None
    if not isinstance(payload, dict):
        shown = piece[:80].decode(errors="replace").strip()
        raise BenchmarkError("garbage", f"It sent what is no JSON object: {shown!r}.")
    if payload.get("error"):
        said = message_in(piece.decode(errors="replace"))
        raise BenchmarkError("decode-failed", f"It broke off with an error: {said}.")
    return payload


@contextmanager
def well_formed() -> Iterator[None]:
    """Turn a missing or odd field into the BenchmarkError "garbage" that it is."""
    try:
        yield
    except KeyError as error:
        raise BenchmarkError("garbage", f"Its answer lacks {error}.") from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise BenchmarkError("garbage", f"Its answer is not as its API has it: {error}.") from None
