"""What each engine can measure, known before anything runs."""

from __future__ import annotations

from farm.domain.decoding import AcceptRule, Speculation, SpeculationKind, WhatIf

IN_PROCESS = "in-process"
LLAMA_SERVER = "llama-server"
ENDPOINT = "endpoint"

KINDS: dict[str, frozenset[SpeculationKind]] = {
    IN_PROCESS: frozenset({SpeculationKind.DRAFT_SIMPLE, SpeculationKind.PROMPT_LOOKUP}),
    LLAMA_SERVER: frozenset(SpeculationKind)
    - {SpeculationKind.PROMPT_LOOKUP, SpeculationKind.AS_SERVED},
    ENDPOINT: frozenset({SpeculationKind.AS_SERVED}),
}

# llama.cpp's own values, passed in so many words: a default that moves between builds can't
# change what is measured.
NGRAM_LOOKUP_TOKENS = 12
NGRAM_MIN_HITS = 1
NGRAM_MOD_LOOKUP_TOKENS = 24
NGRAM_CACHE_K = 8
"""Compiled into common/speculative.cpp; ngram-cache has no flag for it."""

EXPERTS_KEY = "expert_used_count"
"""What GGUF calls the number of experts that each token is given, after the architecture's name."""


def why_not(engine: str, speculation: Speculation, temperature: float) -> str | None:
    """Return why an engine can't measure this, None where it can."""
    kind = speculation.kind
    if kind not in KINDS[engine]:
        able = [name for name, kinds in KINDS.items() if kind in kinds]
        known = ", ".join(sorted(KINDS[engine]))
        return (
            f"the engine {engine} has no kind {kind} (engine: {' or '.join(able)} has); "
            f"it has {known}"
        )
    what_if = speculation.what_if
    if what_if is not None and (reason := _no_what_if(engine, what_if, speculation.n_max)):
        return reason
    if engine != LLAMA_SERVER:
        return None
    if temperature > 0 and speculation.accept is AcceptRule.EXACT:
        return (
            "llama-server accepts drafted tokens by matching the target's own sample, never by "
            "exact rejection sampling; set accept: match"
        )
    if kind is SpeculationKind.NGRAM_SIMPLE and speculation.n_max < NGRAM_LOOKUP_TOKENS:
        # common_ngram_simple_draft gives up where the copy is shorter than the lookup.
        return (
            f"llama.cpp's ngram-simple never drafts with K below its lookup length "
            f"{NGRAM_LOOKUP_TOKENS}; use K of {NGRAM_LOOKUP_TOKENS} or more"
        )
    if kind is SpeculationKind.NGRAM_CACHE and speculation.n_max != NGRAM_CACHE_K:
        return f"llama.cpp's ngram-cache drafts {NGRAM_CACHE_K} tokens and no other K; set k: 8"
    return None


def why_not_at_once(engine: str, requests: int) -> str | None:
    """Return why an engine can't work on so many requests at once, None where it can."""
    if requests > 1 and engine != LLAMA_SERVER:
        return (
            f"the engine {engine} works on one request at a time; leave concurrent_requests out, "
            f"or set engine: {LLAMA_SERVER}"
        )
    return None


def _no_what_if(engine: str, what_if: WhatIf, k: int) -> str | None:
    """Return why this acceptance can't be made up; the rules are llama.cpp's own
    (common_speculative_synth_rates_resolve)."""
    if engine != LLAMA_SERVER:
        return f"the engine {engine} has no what_if; set engine: {LLAMA_SERVER}"
    if what_if.length is None and len(what_if.rates) != k:
        return (
            f"what_if has {len(what_if.rates)} rates and K is {k}; give one for each position, or "
            "a length"
        )
    if what_if.length is not None and what_if.length > k + 1:
        return (
            f"what_if asks for {what_if.length:g} tokens per round, and K = {k} yields {k + 1} at "
            "most; use a smaller length or a larger K"
        )
    return None
