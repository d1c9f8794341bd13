"""How tokens are drawn and how speculation proposes them: the dimensions of a measurement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class SpeculationKind(StrEnum):
    """Where drafted tokens come from; llama.cpp's own words where it has one.

    as-served: whatever a server does that was running already. K is its own too, and `n_max` 0.
    """

    DRAFT_SIMPLE = "draft-simple"
    DRAFT_MTP = "draft-mtp"
    DRAFT_EAGLE3 = "draft-eagle3"
    DRAFT_DFLASH = "draft-dflash"
    DRAFT_DSPARK = "draft-dspark"
    NGRAM_SIMPLE = "ngram-simple"
    NGRAM_MAP_K = "ngram-map-k"
    NGRAM_MAP_K4V = "ngram-map-k4v"
    NGRAM_MOD = "ngram-mod"
    NGRAM_CACHE = "ngram-cache"
    PROMPT_LOOKUP = "prompt-lookup"
    AS_SERVED = "as-served"

    @property
    def takes_draft(self) -> bool:
        """Say whether this kind drafts with a network, and so can read a draft model's file."""
        return self.value.startswith("draft-")

    @property
    def needs_draft(self) -> bool:
        """Say whether this kind can't do without a draft file: MTP has the target's heads."""
        return self.takes_draft and self is not SpeculationKind.DRAFT_MTP

    @property
    def is_ngram(self) -> bool:
        """Say whether this is one of llama.cpp's kinds that draft from earlier text."""
        return self.value.startswith("ngram-")

    @property
    def has_n_min(self) -> bool:
        """Say whether this kind has a least length of a draft: most n-gram kinds have no flag."""
        return not self.is_ngram or self is SpeculationKind.NGRAM_MOD


class AcceptRule(StrEnum):
    """How drafted tokens are accepted above temperature 0 (at 0 both are the same comparison).

    exact: draft samples from q, accept with min(1, p/q), else resample max(0, p - q)
    (Leviathan et al., arXiv 2211.17192). match: greedy draft, accept while the target's own
    sample equals it, as llama.cpp does (common/speculative.cpp). Both leave the target's law
    unchanged.
    """

    EXACT = "exact"
    MATCH = "match"


@dataclass(frozen=True)
class WhatIf:
    """An acceptance that is made up, to see what it would be worth; the text is then not valid.

    rates: for each of the K positions the share of rounds whose drafted tokens are accepted up to
    there, so they never rise. length: mean tokens per round, the target's own included, with one
    conditional rate at all positions. One of the two (llama.cpp: `--spec-synth-rates`, `-len`).
    """

    rates: tuple[float, ...] = ()
    length: float | None = None

    def __str__(self) -> str:
        if self.length is not None:
            return f"length {self.length:g}"
        return f"rates {', '.join(f'{rate:g}' for rate in self.rates)}"


@dataclass(frozen=True)
class Speculation:
    """One way to speculate: kind, K (`n_max`), and when to stop drafting early.

    what_if: None where the target decides what is accepted.
    """

    kind: SpeculationKind
    n_max: int
    n_min: int = 0
    p_min: float = 0.0
    accept: AcceptRule = AcceptRule.EXACT
    what_if: WhatIf | None = None

    @property
    def k_text(self) -> str:
        """Return K as people read it; a server that ran already keeps its own to itself."""
        return "-" if self.kind is SpeculationKind.AS_SERVED else str(self.n_max)


@dataclass(frozen=True)
class Sampling:
    """How the target's tokens are drawn. Temperature 0 is greedy."""

    temperature: float
    seed: int


# KV cache types that hold what the model computed, to the precision it computes in.
FULL_CACHE_TYPES = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Settings:
    """llama.cpp context and load settings; None lets the worker use the machine's default.

    batch_threads: for passes over more than one token; None is `threads`. draft_cache_type_*: None
    is the target's. draft_device: llama.cpp's name of it, as in `--list-devices`. experts_used:
    how many experts of a mixture each token is given, None as many as the model asks for.
    numa: llama.cpp's policy, on Linux alone. depth_tokens: tokens of other text in the context
    before each prompt. concurrent_requests: how many a server works on at once, each with
    context_tokens of its own. chat_template: on where prompts are a user's messages, in the
    target's own form; else they are text to go on from.
    """

    context_tokens: int = 2048
    threads: int | None = None
    gpu_layers: int | None = None
    draft_gpu_layers: int | None = None
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attention: str = "auto"
    batch_threads: int | None = None
    numa: str = "off"
    draft_cache_type_k: str | None = None
    draft_cache_type_v: str | None = None
    draft_device: str | None = None
    experts_used: int | None = None
    depth_tokens: int = 0
    concurrent_requests: int = 1
    chat_template: str = "off"

    def spelled_out(self) -> Settings:
        """Return these settings with every one that follows another filled in from it."""
        keys, values = self.draft_cache_types
        return replace(
            self,
            batch_threads=self.batch_threads or self.threads,
            draft_cache_type_k=keys,
            draft_cache_type_v=values,
        )

    @property
    def draft_cache_types(self) -> tuple[str, str]:
        """Return the types of the draft's K and V cache."""
        return (
            self.draft_cache_type_k or self.cache_type_k,
            self.draft_cache_type_v or self.cache_type_v,
        )

    @property
    def lossy(self) -> tuple[str, ...]:
        """Return the names of the settings that change the target's output law."""
        changes = {
            "cache_type_k": self.cache_type_k not in FULL_CACHE_TYPES,
            "cache_type_v": self.cache_type_v not in FULL_CACHE_TYPES,
            "experts_used": self.experts_used is not None,
        }
        return tuple(name for name, is_lossy in changes.items() if is_lossy)

    @property
    def unmodified(self) -> Settings:
        """Return these settings without what is lossy: as the target's own law has it."""
        if not self.lossy:
            return self
        plain = replace(self, experts_used=None)
        return replace(plain, cache_type_k="f16", cache_type_v="f16") if plain.lossy else plain
