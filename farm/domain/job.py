"""A job: one cell of a sweep, and the states it passes through."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from typing import Any

from farm.domain.decoding import (
    AcceptRule,
    Sampling,
    Settings,
    Speculation,
    SpeculationKind,
    WhatIf,
)
from farm.domain.prompt import PLAIN_TEXT


class JobState(StrEnum):
    """queued -> leased -> done | failed; a lost lease or a retry goes back to queued."""

    QUEUED = "queued"
    LEASED = "leased"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Say whether nothing more happens to a job in this state."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class Arm(StrEnum):
    """The two sides of every paired measurement."""

    BASELINE = "baseline"
    SPECULATIVE = "speculative"


@dataclass(frozen=True)
class ModelRef:
    """A model file: identity is `digest`; `path` is where the submitter saw it."""

    path: str
    digest: str
    name: str


@dataclass(frozen=True)
class JobSpec:
    """Everything that decides what a job measures. Equal specs have equal keys.

    machine: "any", "kind:<cpu|nvidia|apple>" or "name:<machine>". build: what must decode, as
    "<distribution>==<version>". prompts: digests of the prompts, in order. label: a user's word
    that makes the same cell a new job, to be measured again. depth_text: digest of the prompt whose
    text fills `settings.depth_tokens`, None where that is 0.
    """

    machine: str
    engine: str
    build: str
    target: ModelRef
    draft: ModelRef | None
    speculation: Speculation
    sampling: Sampling
    settings: Settings
    category: str
    prompts: tuple[str, ...]
    generate_tokens: int
    repeats: int
    label: str = ""
    depth_text: str | None = None

    @property
    def key(self) -> str:
        """Return the content address: models count by digest, so a moved file is the same job.

        What has its default is left out: a dimension that is added later leaves old keys as they
        were.
        """
        payload = _chosen(self)
        for role in ("target", "draft"):
            payload[role] = payload.get(role) and payload[role]["digest"]
        canonical = json.dumps(payload, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def prompts_digest(self) -> str:
        """Return the identity of what is decoded: the prompts in order, what lies before, how long
        that is, and whether a chat template goes around.

        Plain prompts keep the digest that they had before a job could have either.
        """
        chosen: list[Any] = [self.category, self.prompts, self.depth_text]
        if self.settings.depth_tokens or self.is_chat:
            chosen += [self.settings.depth_tokens, self.is_chat]
        return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()

    @property
    def pair_key(self) -> str:
        """Return what a loaded child can serve: jobs with equal keys share one load."""
        loaded = [
            self.engine,
            self.build,
            self.target.digest,
            self.draft.digest if self.draft else None,
            _chosen(self.settings),
        ]
        return hashlib.sha256(json.dumps(loaded, sort_keys=True).encode()).hexdigest()

    @property
    def is_chat(self) -> bool:
        """Say whether the prompts are put into the target's chat template."""
        return self.settings.chat_template == "on" and self.category not in PLAIN_TEXT

    def to_payload(self) -> dict[str, Any]:
        """Return the spec as JSON types, as `from_payload` reads it."""
        return asdict(self) | {"prompts": list(self.prompts)}

    @classmethod
    def from_payload(cls, payload: dict[str, Any]) -> JobSpec:
        """Rebuild a spec from `to_payload`'s result."""
        speculation = payload["speculation"]
        what_if = speculation.get("what_if")
        draft = payload["draft"]
        return cls(
            **payload
            | {
                "target": ModelRef(**payload["target"]),
                "draft": ModelRef(**draft) if draft else None,
                "speculation": Speculation(
                    **speculation
                    | {
                        "kind": SpeculationKind(speculation["kind"]),
                        "accept": AcceptRule(speculation["accept"]),
                        "what_if": what_if and _what_if(what_if),
                    }
                ),
                "sampling": Sampling(**payload["sampling"]),
                "settings": Settings(**payload["settings"]),
                "prompts": tuple(payload["prompts"]),
            }
        )


def _what_if(payload: dict[str, Any]) -> WhatIf:
    return WhatIf(**payload | {"rates": tuple(payload["rates"])})


def _chosen(value: Any) -> Any:
    """Return a dataclass's fields that have another value than their default, as JSON types."""
    if not is_dataclass(value):
        return value
    return {
        field.name: _chosen(getattr(value, field.name))
        for field in fields(value)
        if getattr(value, field.name) != field.default
    }
