"""From a recommendation to the llama-server command line that serves it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from farm.domain.decoding import AcceptRule, Settings, Speculation, SpeculationKind
from farm.domain.engines import (
    ENDPOINT,
    EXPERTS_KEY,
    NGRAM_LOOKUP_TOKENS,
    NGRAM_MIN_HITS,
    NGRAM_MOD_LOOKUP_TOKENS,
)
from farm.endpoints.register import pair_names
from farm.report.wording import plain
from farm.science.recommendation import Verdict
from farm.services.recommend import CALIBRATION_NOTE, Recommendation, Setup

LOOKUP_NOTE = (
    "llama-server has no flag for the measured prompt lookup; --spec-type ngram-simple comes "
    "nearest and wants a measurement of its own."
)
ACCEPT_NOTE = (
    "Measured with exact rejection sampling. llama-server accepts by matching the target's own "
    "sample, which gives another acceptance above temperature 0: measure 'accept: match' before "
    "relying on this speedup."
)
LOSSY_SERVING_NOTE = (
    "The target's output is not that of the unmodified model: these settings change it, with "
    "speculation or without."
)
EXAMPLE_NOTE = f"An example only: this is a {CALIBRATION_NOTE}."


@dataclass(frozen=True)
class Serving:
    """One command and the kinds of content it serves best.

    command: ready to paste; None where llama-server cannot do what was measured. notes: what
    the reader must know before pasting it.
    """

    categories: tuple[str, ...]
    speculates: bool
    command: str | None
    notes: tuple[str, ...]


def servings(recommendations: Sequence[Recommendation]) -> list[Serving]:
    """Return the commands for recommendations of one subject, equal commands joined.

    Speculation is fixed when llama-server starts, so each K needs a server of its own. Setups
    with too few prompts have no command.
    """
    categories: dict[tuple[bool, str | None, tuple[str, ...]], list[str]] = {}
    for recommendation in recommendations:
        if recommendation.verdict is Verdict.UNDECIDED:
            continue
        arguments = argument_lines(recommendation)
        command = None if arguments is None else _lines(arguments)
        key = (recommendation.verdict is Verdict.ON, command, _notes(recommendation))
        categories.setdefault(key, []).append(recommendation.setup.category)
    return [Serving(tuple(names), *key) for key, names in categories.items()]


def argument_lines(recommendation: Recommendation) -> list[list[str]] | None:
    """Return llama-server's arguments, models by file name, in lines short enough to read.

    Every speculation parameter is passed, since llama.cpp's defaults move between builds; `-md`
    alone loads the draft and decodes without it. None for advice llama-server has no flags for, and
    for servers that run already.
    """
    setup, best = recommendation.setup, recommendation.best
    if setup.engine == ENDPOINT:
        return None
    arguments = ["llama-server", "-m", _file(setup.target)]
    draft_arguments: list[str] = []
    if recommendation.verdict is Verdict.ON and best is not None:
        kind = best.speculation.kind
        if kind is SpeculationKind.PROMPT_LOOKUP or (kind.needs_draft and setup.draft is None):
            return None
        if setup.draft is not None:
            arguments += ["-md", _file(setup.draft)]
        draft_arguments = ["--spec-type", kind.value, *_speculation_arguments(best.speculation)]
    drafts = bool(draft_arguments) and SpeculationKind(setup.kind).takes_draft
    has_draft = bool(draft_arguments) and setup.draft is not None
    rest = _settings_arguments(setup, drafts=drafts, has_draft=has_draft)
    at_once = setup.settings.concurrent_requests
    slots = ["-np", str(at_once)]
    if at_once > 1:
        # llama.cpp divides the context among its slots.
        slots += ["-c", str(at_once * setup.settings.context_tokens)]
    rest = [*slots, "--temp", f"{setup.temperature:g}", *rest]
    return [arguments, draft_arguments, rest] if draft_arguments else [[*arguments, *rest]]


def _speculation_arguments(speculation: Speculation) -> list[str]:
    """Return the flags of today's llama-server that are not `--spec-type`."""
    k = str(speculation.n_max)
    match speculation.kind:
        case SpeculationKind.NGRAM_CACHE:
            return []
        case SpeculationKind.NGRAM_MOD:
            flags = {"n-max": k, "n-min": str(speculation.n_min)}
            flags |= {"n-match": str(NGRAM_MOD_LOOKUP_TOKENS)}
        case kind if kind.is_ngram:
            flags = {"size-m": k, "size-n": str(NGRAM_LOOKUP_TOKENS)}
            flags |= {"min-hits": str(NGRAM_MIN_HITS)}
        case _:
            flags = {"n-max": k, "n-min": str(speculation.n_min)}
            flags |= {"p-min": f"{speculation.p_min:g}"}
    prefix = "draft" if speculation.kind.takes_draft else speculation.kind.value
    return [part for name, value in flags.items() for part in (f"--spec-{prefix}-{name}", value)]


def _lines(arguments: list[list[str]]) -> str:
    return " \\\n  ".join(shlex.join(line) for line in arguments if line)


def _settings_arguments(setup: Setup, *, drafts: bool, has_draft: bool) -> list[str]:
    """Return flags for what was set by hand; the context is the reader's choice."""
    settings, defaults = setup.settings, Settings()
    cache_k, cache_v = settings.draft_cache_types
    experts = f"{setup.architecture}.{EXPERTS_KEY}=int:{settings.experts_used}"
    flags = [
        ("-t", settings.threads, None),
        ("-tb", settings.batch_threads, None),
        ("--numa", settings.numa, defaults.numa),
        ("-ngl", settings.gpu_layers, None),
        ("-ngld", settings.draft_gpu_layers if has_draft else None, None),
        ("-devd", settings.draft_device if has_draft else None, None),
        ("-ctk", settings.cache_type_k, defaults.cache_type_k),
        ("-ctv", settings.cache_type_v, defaults.cache_type_v),
        ("-ctkd", cache_k if drafts else defaults.cache_type_k, defaults.cache_type_k),
        ("-ctvd", cache_v if drafts else defaults.cache_type_v, defaults.cache_type_v),
        ("-fa", settings.flash_attention, defaults.flash_attention),
        ("--override-kv", experts if settings.experts_used else None, None),
    ]
    return [
        part for flag, value, default in flags if value != default for part in (flag, str(value))
    ]


def _notes(recommendation: Recommendation) -> tuple[str, ...]:
    setup, best = recommendation.setup, recommendation.best
    notes = [EXAMPLE_NOTE] if setup.is_calibration else []
    if setup.engine == ENDPOINT:
        plain_name, fast_name = pair_names(setup.build)
        name = fast_name if recommendation.verdict is Verdict.ON else plain_name
        return (*notes, f"Ask the endpoint {name}, as it was started.")
    if setup.settings.lossy:
        notes.append(LOSSY_SERVING_NOTE)
    if recommendation.verdict is Verdict.ON and best is not None:
        if best.speculation.kind is SpeculationKind.PROMPT_LOOKUP:
            notes.append(LOOKUP_NOTE)
        elif setup.temperature > 0 and best.speculation.accept is AcceptRule.EXACT:
            notes.append(ACCEPT_NOTE)
    return tuple(notes)


def _file(name: str) -> str:
    # A model is stored under its file's name without the ending.
    name = f"{plain(name).removesuffix('.gguf')}.gguf"
    return f"./{name}" if name.startswith("-") else name
