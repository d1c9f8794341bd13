"""The whole command line of one llama-server: nothing that decides a result is left to defaults."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from farm.builds.dialect import Dialect
from farm.domain.decoding import Sampling, Settings, Speculation, SpeculationKind, WhatIf
from farm.domain.engines import (
    LLAMA_SERVER,
    NGRAM_LOOKUP_TOKENS,
    NGRAM_MIN_HITS,
    NGRAM_MOD_LOOKUP_TOKENS,
    why_not,
)
from farm.errors import BenchmarkError

# llama.cpp's own sizes, passed in so many words.
LOGICAL_BATCH_TOKENS = 2048
PHYSICAL_BATCH_TOKENS = 512
ALL_LAYERS = 999

# Kinds whose K, lookup length and least hits have flags that follow one pattern, and the spelling
# that all of them shared before.
_NGRAM_TABLES = (
    SpeculationKind.NGRAM_SIMPLE,
    SpeculationKind.NGRAM_MAP_K,
    SpeculationKind.NGRAM_MAP_K4V,
)


def arguments(
    dialect: Dialect,
    speculation: Speculation | None,
    settings: Settings,
    sampling: Sampling,
    target: Path,
    draft: Path | None,
    port: int,
    key: str,
    overrides: Mapping[str, int] | None = None,
) -> list[str]:
    """Return a server's arguments, without the program's name. speculation None is the baseline.

    overrides: numbers of the target's metadata that count in place of the file's. Raises
    BenchmarkError "unsupported", naming kind and binary, for what the binary has no flag.
    """
    return [
        *("--host", "127.0.0.1", "--port", str(port), "--api-key", key),
        *("-m", str(target)),
        *_context(dialect, settings),
        *_machine(dialect, settings),
        *_overrides(dialect, overrides or {}),
        *_sampling(sampling),
        *_serving(dialect),
        *_speculation(dialect, speculation, settings, sampling, draft),
    ]


def _context(dialect: Dialect, settings: Settings) -> list[str]:
    threads = _threads(settings.threads)
    batch_threads = _threads(settings.spelled_out().batch_threads)
    # llama.cpp divides the whole context among its slots.
    context_tokens = settings.context_tokens * settings.concurrent_requests
    return [
        *("-c", str(context_tokens), "-np", str(settings.concurrent_requests)),
        *("-b", str(LOGICAL_BATCH_TOKENS), "-ub", str(PHYSICAL_BATCH_TOKENS)),
        *("-t", threads, "-tb", batch_threads),
        *_layers(dialect, "-ngl", settings.gpu_layers),
        *("-ctk", settings.cache_type_k, "-ctv", settings.cache_type_v),
        *_flash_attention(dialect, settings.flash_attention),
    ]


def _threads(number: int | None) -> str:
    return "-1" if number is None else str(number)


def _machine(dialect: Dialect, settings: Settings) -> list[str]:
    if settings.numa == "off":
        return []
    if sys.platform != "linux":
        # It would do nothing there, and say nothing.
        raise BenchmarkError(
            "unsupported", f"llama.cpp has NUMA policies on Linux only, so no {settings.numa}."
        )
    flag = dialect.require(f"it can't be told the NUMA policy {settings.numa}", "--numa")
    return [flag, settings.numa]


def _overrides(dialect: Dialect, numbers: Mapping[str, int]) -> list[str]:
    said: list[str] = []
    for name, number in numbers.items():
        flag = dialect.require(f"it can't be told {name}", "--override-kv")
        said += [flag, f"{name}=int:{number}"]
    return said


def _layers(dialect: Dialect, flag: str, layers: int | None) -> list[str]:
    if layers is None:
        # Older builds have no word for their own choice.
        return [flag, "auto"] if dialect.layers_have_names else []
    if layers < 0:
        return [flag, "all" if dialect.layers_have_names else str(ALL_LAYERS)]
    return [flag, str(layers)]


def _flash_attention(dialect: Dialect, choice: str) -> list[str]:
    if dialect.flash_attention_takes_value:
        return ["-fa", choice]
    # A plain switch knows no auto: off is what such a build does when it is not told otherwise.
    return ["-fa"] if choice == "on" else []


def _sampling(sampling: Sampling) -> list[str]:
    """Return flags under which a token is drawn from the plain softmax at the temperature."""
    return [
        *("--samplers", "temperature", "--temp", f"{sampling.temperature:g}"),
        *("--seed", str(sampling.seed), "--top-k", "0", "--top-p", "1.0", "--min-p", "0.0"),
        *("--repeat-penalty", "1.0"),
    ]


def _serving(dialect: Dialect) -> list[str]:
    """Return what makes every request start from nothing, and the server tell about itself."""
    wanted = [
        ("--no-cache-prompt",),
        ("--no-context-shift",),
        ("--cache-ram", "0"),
        ("--ctx-checkpoints", "0"),
        # It would change what it was not told, such as the context, to fit a device's memory.
        ("--fit", "off"),
        ("--metrics",),
        ("--slots",),
        ("--no-webui",),
        ("--offline",),
        # One pool for all would let a long request take the context of its neighbours.
        ("--no-kv-unified",),
    ]
    return [part for flag, *value in wanted if flag in dialect.options for part in (flag, *value)]


def _speculation(
    dialect: Dialect,
    speculation: Speculation | None,
    settings: Settings,
    sampling: Sampling,
    draft: Path | None,
) -> list[str]:
    if speculation is None:
        return ["--spec-type", "none"] if dialect.has_spec_type else []
    kind = speculation.kind
    if reason := why_not(LLAMA_SERVER, speculation, sampling.temperature):
        raise BenchmarkError("unsupported", f"{kind} with {dialect.build}: {reason}.")
    if kind not in dialect.kinds:
        offered = ", ".join(sorted(dialect.kinds)) or "none"
        raise BenchmarkError(
            "unsupported", f"{dialect.build} does not offer {kind}; it offers {offered}."
        )
    chosen = []
    if not (dialect.drafts_unasked and kind is SpeculationKind.DRAFT_SIMPLE):
        chosen = ["--spec-type", kind.value]
    chosen += _what_if(dialect, speculation.what_if)
    if kind.takes_draft:
        return [*chosen, *_draft(dialect, speculation, settings, draft)]
    return [*chosen, *_ngram(dialect, speculation)]


def _what_if(dialect: Dialect, what_if: WhatIf | None) -> list[str]:
    if what_if is None:
        return []
    why = "it can't make up an acceptance"
    if what_if.length is not None:
        return [dialect.require(why, "--spec-synth-len"), str(what_if.length)]
    rates = ",".join(str(rate) for rate in what_if.rates)
    return [dialect.require(why, "--spec-synth-rates"), rates]


def _draft(
    dialect: Dialect, speculation: Speculation, settings: Settings, draft: Path | None
) -> list[str]:
    kind = speculation.kind
    if draft is None and kind.needs_draft:
        raise BenchmarkError("unsupported", f"{kind} with {dialect.build} needs a draft model.")
    why = f"{kind} can't be told it"
    n_max = dialect.require(why, "--spec-draft-n-max", "--draft-max")
    n_min = dialect.require(why, "--spec-draft-n-min", "--draft-min")
    p_min = dialect.require(why, "--spec-draft-p-min", "--draft-p-min")
    flags = [
        *(n_max, str(speculation.n_max), n_min, str(speculation.n_min)),
        *(p_min, f"{speculation.p_min:g}"),
        *_draft_cache(dialect, settings),
    ]
    if draft is None:
        return flags
    model = dialect.require(why, "--spec-draft-model", "-md")
    flags = [model, str(draft), *flags, *_layers(dialect, "-ngld", settings.draft_gpu_layers)]
    # Older builds would give the draft the whole context it was trained for.
    if "--ctx-size-draft" in dialect.options:
        flags += ["--ctx-size-draft", str(settings.context_tokens)]
    if settings.draft_device is not None:
        device = dialect.require(why, "--spec-draft-device", "-devd", "--device-draft")
        flags += [device, settings.draft_device]
    for number, *names in (
        (settings.threads, "--spec-draft-threads", "-td"),
        (settings.spelled_out().batch_threads, "--spec-draft-threads-batch", "-tbd"),
    ):
        if number is not None:
            flags += [dialect.require(why, *names), str(number)]
    return flags


def _draft_cache(dialect: Dialect, settings: Settings) -> list[str]:
    flags = []
    for flag, chosen in zip(("-ctkd", "-ctvd"), settings.draft_cache_types, strict=True):
        if flag in dialect.options:
            flags += [flag, chosen]
        elif chosen != "f16":
            dialect.require(f"its draft's cache is always f16, not {chosen}", flag)
    return flags


def _ngram(dialect: Dialect, speculation: Speculation) -> list[str]:
    kind, k = speculation.kind, str(speculation.n_max)
    why = f"{kind} can't be told it"
    if kind in _NGRAM_TABLES:
        size_m = dialect.require(why, f"--spec-{kind}-size-m", "--spec-ngram-size-m")
        size_n = dialect.require(why, f"--spec-{kind}-size-n", "--spec-ngram-size-n")
        hits = dialect.require(why, f"--spec-{kind}-min-hits", "--spec-ngram-min-hits")
        return [size_m, k, size_n, str(NGRAM_LOOKUP_TOKENS), hits, str(NGRAM_MIN_HITS)]
    if kind is SpeculationKind.NGRAM_MOD:
        n_max = dialect.require(why, "--spec-ngram-mod-n-max", "--draft-max")
        n_min = dialect.require(why, "--spec-ngram-mod-n-min", "--draft-min")
        match = dialect.require(why, "--spec-ngram-mod-n-match", "--spec-ngram-size-n")
        return [n_max, k, n_min, str(speculation.n_min), match, str(NGRAM_MOD_LOOKUP_TOKENS)]
    # ngram-cache has no flags; `why_not` has seen to its K.
    return []
