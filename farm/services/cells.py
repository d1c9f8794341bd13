"""The settings of a sweep's cells: every combination, and what none of them can be."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

from farm.domain.decoding import Settings, SpeculationKind
from farm.domain.engines import EXPERTS_KEY, LLAMA_SERVER, why_not_at_once
from farm.domain.hardware import MachineKind
from farm.domain.prompt import PLAIN_TEXT, Prompt, PromptSet
from farm.errors import UserError
from farm.gguf.chat_template import ChatTemplate, has_chat_template
from farm.gguf.header import Header
from farm.gguf.memory import CACHE_PADDING_TOKENS, head_sizes
from farm.gguf.tensor_types import block_elements
from farm.services.sweepfile import SweepFile

DEPTH_CATEGORY = "depth"
"""The category of a text that only fills the context: no content of its own."""

# Text in the vocabularies of today's models; the tokens themselves are counted when a job runs.
CHARACTERS_PER_TOKEN = 4


def settings_of(
    sweep: SweepFile, kind: SpeculationKind, target: Header, draft: Header | None
) -> list[Settings]:
    """Return every combination of a sweep's settings, as they count for one pair.

    What makes no difference to the pair is left out: a draft's settings without a draft, a value
    that is the default anyway. Raises UserError for what llama.cpp would refuse or not heed.
    """
    chosen = {
        field.name: getattr(sweep, field.name)
        for field in fields(Settings)
        if getattr(sweep, field.name, None) is not None
    }
    found: dict[Settings, None] = {}
    for values in itertools.product(*chosen.values()):
        settings = Settings(**dict(zip(chosen, values, strict=True)))
        if reason := _why_not(settings, sweep, kind, target, draft):
            raise UserError(f"{reason}. Nothing was submitted.")
        found[_for_pair(settings, kind, target, draft)] = None
    return list(found)


def require_template(target: Header, prompts: Sequence[Prompt]) -> None:
    """Raise UserError where the target's chat template can't be filled in with these prompts."""
    template = ChatTemplate(target)
    for prompt in prompts:
        if prompt.category not in PLAIN_TEXT:
            template.prompt(prompt.text)


def require_room(
    settings: Settings, sweep: SweepFile, prompts: Sequence[Prompt], target: Header
) -> None:
    """Raise UserError where depth, the longest prompt, what is generated and the largest K can't
    all be in the context."""
    generate_tokens, n_max = sweep.generate_tokens, max(sweep.k)
    prompt_tokens = 1 + max(len(prompt.text) for prompt in prompts) // CHARACTERS_PER_TOKEN
    need = settings.depth_tokens + prompt_tokens + generate_tokens + n_max
    what = (
        f"depth_tokens {settings.depth_tokens}, a prompt of about {prompt_tokens} tokens, "
        f"{generate_tokens} generated and K = {n_max} need {need} tokens of context"
    )
    if need > settings.context_tokens:
        enough = -(-need // CACHE_PADDING_TOKENS) * CACHE_PADDING_TOKENS
        raise UserError(
            f"{what} and context_tokens is {settings.context_tokens}; set context_tokens: "
            f"{enough}. Nothing was submitted."
        )
    trained = target.context_length
    # The server caps a slot there (server_context: n_ctx_slot); in process there is no cap.
    if sweep.engine == LLAMA_SERVER and trained is not None and need > trained:
        raise UserError(
            f"{what}, and llama-server gives {target.name} no more than the {trained} it was "
            "trained for; lower depth_tokens. Nothing was submitted."
        )


def depth_prompt(prompt_set: PromptSet, members: Sequence[Prompt]) -> Prompt:
    """Return the text that fills the context of a job: the set's prompts that the job leaves out,
    all of them where it leaves none out. One text serves every depth."""
    own = {prompt.digest for prompt in members}
    others = [prompt for prompt in prompt_set.prompts if prompt.digest not in own]
    text = "\n\n".join(prompt.text for prompt in others or prompt_set.prompts)
    return Prompt(f"{DEPTH_CATEGORY} of {prompt_set.name}", DEPTH_CATEGORY, f"{text}\n\n")


def _for_pair(
    settings: Settings, kind: SpeculationKind, target: Header, draft: Header | None
) -> Settings:
    plain: dict[str, Any] = {}
    if not kind.takes_draft or settings.draft_cache_type_k == settings.cache_type_k:
        plain["draft_cache_type_k"] = None
    if not kind.takes_draft or settings.draft_cache_type_v == settings.cache_type_v:
        plain["draft_cache_type_v"] = None
    if draft is None:
        plain |= {"draft_gpu_layers": None, "draft_device": None}
    if settings.batch_threads == settings.threads:
        plain["batch_threads"] = None
    if settings.experts_used == target.arch_number(EXPERTS_KEY):
        plain["experts_used"] = None
    if settings.chat_template == "auto":
        plain["chat_template"] = "on" if has_chat_template(target) else "off"
    return replace(settings, **plain)


def _why_not(
    settings: Settings,
    sweep: SweepFile,
    kind: SpeculationKind,
    target: Header,
    draft: Header | None,
) -> str | None:
    """Return the first reason why a pair can't be measured with these settings."""
    reasons = itertools.chain(
        _of_caches(settings, kind, target, draft),
        _of_experts(settings, sweep.engine, target, draft),
        _of_machines(settings, sweep),
        _of_prompts(settings, target),
        _of_load(settings, sweep.engine),
    )
    return next(reasons, None)


def _of_load(settings: Settings, engine: str) -> Iterator[str]:
    if reason := why_not_at_once(engine, settings.concurrent_requests):
        yield f"concurrent_requests = {settings.concurrent_requests}: {reason}"


def _of_caches(
    settings: Settings, kind: SpeculationKind, target: Header, draft: Header | None
) -> Iterator[str]:
    """Yield what llama_init_from_model refuses (llama.cpp, src/llama-context.cpp)."""
    caches = [("", target, (settings.cache_type_k, settings.cache_type_v))]
    if kind.takes_draft:
        caches.append(("draft_", draft or target, settings.draft_cache_types))
    for role, header, types in caches:
        if settings.flash_attention == "off":
            if block_elements(types[1]) > 1:
                yield (
                    f"{role}cache_type_v {types[1]} needs flash attention: llama.cpp refuses a "
                    "quantised V cache without it; use f16 there, or flash_attention: auto"
                )
            continue
        for name, cache_type, size in zip("kv", types, head_sizes(header), strict=True):
            block = block_elements(cache_type)
            if size % block:
                yield (
                    f"{role}cache_type_{name} {cache_type} stores blocks of {block} values and "
                    f"{header.name} has heads of {size}; llama.cpp refuses that"
                )


def _of_experts(
    settings: Settings, engine: str, target: Header, draft: Header | None
) -> Iterator[str]:
    if settings.experts_used is None:
        return
    wanted = f"experts_used {settings.experts_used}"
    experts = target.arch_number("expert_count") or 0
    key = f"{target.architecture}.{EXPERTS_KEY}"
    if not experts:
        yield f"{wanted}: {target.name} is no mixture of experts; leave experts_used out"
    elif settings.experts_used > experts:
        yield f"{wanted}: {target.name} has {experts} experts"
    elif not isinstance(target.metadata.get(key), int):
        # llama_model_loader::get_key_or_arr looks at overrides for a single number only.
        yield (
            f"{wanted}: {target.name} states its experts in use for each layer, which llama.cpp "
            "does not let be overridden"
        )
    elif engine == LLAMA_SERVER and draft is not None and key in draft.metadata:
        yield (
            f"{wanted}: llama-server would change the experts of {draft.name} as well; "
            "measure it with engine: in-process"
        )


def _of_machines(settings: Settings, sweep: SweepFile) -> Iterator[str]:
    if settings.numa != "off" and f"kind:{MachineKind.APPLE}" in sweep.machines:
        yield f"numa {settings.numa}: llama.cpp has NUMA policies on Linux only, not on kind:apple"


def _of_prompts(settings: Settings, target: Header) -> Iterator[str]:
    if settings.chat_template == "on" and not has_chat_template(target):
        yield f"chat_template: {target.name} brings none; leave the key out, or set it to off"
