"""Sweep files: YAML in, a checked `SweepFile` out, errors with file, line and column."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from farm.domain.decoding import AcceptRule, SpeculationKind, WhatIf
from farm.domain.engines import ENDPOINT, LLAMA_SERVER
from farm.errors import UserError
from farm.services.sweep_yaml import mark_of, parse

K_MAX = 128
AT_ONCE_MAX = 64
INSTALLED = "installed"
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
FlashAttention = Literal["auto", "on", "off"]
ChatChoice = Literal["auto", "on", "off"]
NumaPolicy = Literal["off", "distribute", "isolate", "numactl"]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _no_gaps_nor_repeats(values: list[Any]) -> list[Any]:
    if not values:
        raise ValueError("the list is empty")
    repeated = [value for index, value in enumerate(values) if value in values[:index]]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is there twice")
    return values


def _spelled_out(value: Any) -> Any:
    """Turn {from: 2, to: 8, step: 2} into [2, 4, 6, 8]."""
    if not isinstance(value, dict):
        return value
    numbers = {"step": 1} | value
    if set(numbers) != {"from", "to", "step"}:
        raise ValueError("a range has the keys from, to and, if you like, step")
    if not all(type(number) is int for number in numbers.values()) or numbers["step"] < 1:
        raise ValueError("from, to and step are whole numbers and step is at least 1")
    if not 1 <= numbers["from"] <= numbers["to"] <= K_MAX:
        raise ValueError(f"a range goes up from 1 or more to {K_MAX} or less")
    return list(range(numbers["from"], numbers["to"] + 1, numbers["step"]))


def _yaml_word(value: Any) -> Any:
    # YAML 1.1 reads a bare on or off as a truth value.
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


T = TypeVar("T")
Many = Annotated[list[T], BeforeValidator(_as_list), AfterValidator(_no_gaps_nor_repeats)]
N = Annotated[int, Field(ge=1, le=K_MAX)]
Positive = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PairEntry(_Strict):
    """A target with drafts, or with a kind that needs none."""

    target: str
    drafts: Many[str] | None = None
    kind: Literal[
        "draft-simple",
        "draft-mtp",
        "draft-eagle3",
        "draft-dflash",
        "draft-dspark",
        "ngram-simple",
        "ngram-map-k",
        "ngram-map-k4v",
        "ngram-mod",
        "ngram-cache",
        "prompt-lookup",
    ] = "draft-simple"

    @model_validator(mode="after")
    def _drafts_fit_kind(self) -> PairEntry:
        kind = SpeculationKind(self.kind)
        if kind.needs_draft and not self.drafts:
            raise ValueError(f"kind {self.kind} needs 'drafts'; a kind without is prompt-lookup")
        if not kind.takes_draft and self.drafts:
            raise ValueError(f"kind {self.kind} takes no 'drafts'")
        return self


class WhatIfEntry(_Strict):
    """A made-up acceptance: one rate for each position, or the mean tokens per round."""

    rates: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)] | None = None
    length: Annotated[float, Field(ge=1, le=K_MAX + 1)] | None = None

    @model_validator(mode="after")
    def _one_that_can_be(self) -> WhatIfEntry:
        if (self.rates is None) == (self.length is None):
            raise ValueError("a what_if has either rates or a length")
        rates = self.rates or []
        if any(later > earlier for earlier, later in itertools.pairwise(rates)):
            raise ValueError(
                f"rates are shares of all rounds, so that they never rise, and {rates} does"
            )
        return self

    @property
    def value(self) -> WhatIf:
        """Return it as the domain has it."""
        return WhatIf(tuple(self.rates or ()), self.length)


class PromptChoice(_Strict):
    """Which prompts: a set, some of its categories, the first few of each."""

    set: str = "standard"
    categories: Many[str] | None = None
    per_category: Positive | None = None


class Sweep(_Strict):
    """What every sweep can say. Every list is a dimension of the grid."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    label: Annotated[str, Field(max_length=100)] = ""
    machines: Many[Annotated[str, Field(pattern=r"^(any|kind:(cpu|nvidia|apple)|name:\S+)$")]] = [
        "any"
    ]
    temperatures: Many[Annotated[float, Field(ge=0, le=5)]] = [0.0]
    seeds: Many[Annotated[int, Field(ge=0)]] = [0]
    prompts: PromptChoice = PromptChoice()
    generate_tokens: Annotated[int, Field(ge=2, le=100_000)] = 128
    repeats: Annotated[int, Field(ge=1, le=100)] = 1


class EndpointPair(_Strict):
    """Two registered endpoints, by name. same_model: the user's word for it where the servers name
    one model differently."""

    baseline: str
    speculative: str
    same_model: bool = False

    @model_validator(mode="after")
    def _are_two(self) -> EndpointPair:
        if self.baseline == self.speculative:
            raise ValueError("baseline and speculative are one endpoint; name two")
        return self


class EndpointSweep(Sweep):
    """A sweep over servers that run already: all that they can be told."""

    engine: Literal["endpoint"]
    pairs: Annotated[list[EndpointPair], Field(min_length=1)]


class SweepFile(Sweep):
    """A sweep over model files."""

    pairs: Annotated[list[PairEntry], Field(min_length=1)]
    k: Annotated[Many[N], BeforeValidator(_spelled_out)]
    p_min: Many[Annotated[float, Field(ge=0, le=1)]] = [0.0]
    n_min: Many[Annotated[int, Field(ge=0, le=K_MAX)]] = [0]
    accept: Many[Literal["exact", "match"]] | None = None
    what_if: Many[WhatIfEntry] | None = None
    context_tokens: Many[Annotated[int, Field(ge=64)]] = [2048]
    threads: Many[Positive] | None = None
    gpu_layers: Many[Annotated[int, Field(ge=-1)]] | None = None
    draft_gpu_layers: Many[Annotated[int, Field(ge=-1)]] | None = None
    cache_type_k: Many[CacheType] = ["f16"]
    cache_type_v: Many[CacheType] = ["f16"]
    flash_attention: Many[Annotated[FlashAttention, BeforeValidator(_yaml_word)]] = ["auto"]
    batch_threads: Many[Positive] | None = None
    numa: Many[Annotated[NumaPolicy, BeforeValidator(_yaml_word)]] = ["off"]
    draft_cache_type_k: Many[CacheType] | None = None
    draft_cache_type_v: Many[CacheType] | None = None
    draft_device: Many[Annotated[str, Field(pattern=r"^\S+$")]] | None = None
    experts_used: Many[Positive] | None = None
    depth_tokens: Many[Annotated[int, Field(ge=0)]] = [0]
    chat_template: Many[Annotated[ChatChoice, BeforeValidator(_yaml_word)]] = ["auto"]
    concurrent_requests: Many[Annotated[int, Field(ge=1, le=AT_ONCE_MAX)]] = [1]
    # A sweep over endpoints has a form of its own; the name is here to be listed with the others.
    engine: Literal["in-process", "llama-server", "endpoint"] = "in-process"
    build: str = INSTALLED

    @model_validator(mode="after")
    def _n_min_fits_k(self) -> SweepFile:
        """Refuse a K or an n_min without any cell; n_min above K in some cells only is left out."""
        for n_min, k in ((min(self.n_min), min(self.k)), (max(self.n_min), max(self.k))):
            if n_min > k:
                raise ValueError(f"n_min {n_min} is above k {k}, which never drafts so many")
        return self

    @model_validator(mode="after")
    def _draft_settings_have_a_draft(self) -> SweepFile:
        has_file = any(entry.drafts for entry in self.pairs)
        drafts = any(SpeculationKind(entry.kind).takes_draft for entry in self.pairs)
        for name, heeded in (
            ("draft_gpu_layers", has_file),
            ("draft_device", has_file),
            ("draft_cache_type_k", drafts),
            ("draft_cache_type_v", drafts),
        ):
            if getattr(self, name) is not None and not heeded:
                raise ValueError(f"{name} is for a draft and no pair has one; leave it out")
        return self

    @property
    def accept_rules(self) -> list[AcceptRule]:
        """Return the rules to measure; llama-server has but one."""
        if self.accept is None:
            return [AcceptRule.MATCH if self.engine == LLAMA_SERVER else AcceptRule.EXACT]
        return [AcceptRule(rule) for rule in self.accept]

    @property
    def what_ifs(self) -> list[WhatIf | None]:
        """Return the acceptances to make up; None alone is the real one."""
        return [None] if self.what_if is None else [entry.value for entry in self.what_if]


def load_sweep(path: Path) -> tuple[SweepFile | EndpointSweep, str]:
    """Return a sweep file's content, checked, and its text.

    Raises UserError naming file, line and column, what is wrong, and what is allowed there.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"There is no sweep file {path}; 'farm submit --example' prints one."
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a sweep file in it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as text: {error}.") from None
    root, content = parse(path, text)
    form = EndpointSweep if content.get("engine") == ENDPOINT else SweepFile
    try:
        return form.model_validate(content), text
    except ValidationError as error:
        lines = [_describe(path, root, form, problem) for problem in error.errors()]
        raise UserError("\n".join(dict.fromkeys(lines)) + "\nNothing was submitted.") from None


def _describe(path: Path, root: yaml.Node, form: type[Sweep], problem: Any) -> str:
    steps = problem["loc"]
    kind, key = problem["type"], ".".join(str(step) for step in steps)
    if kind == "extra_forbidden":
        mark = mark_of(root, steps, of_key=True)
        known = sorted(_model_at(form, steps[:-1]).model_fields)
        if form is EndpointSweep and len(steps) == 1 and steps[0] in SweepFile.model_fields:
            what = f"an endpoint can't be told '{steps[0]}': its server was started with its own"
        else:
            what = f"unknown key '{steps[-1]}'"
        what += f"; allowed are {', '.join(known)}"
    elif kind == "missing":
        mark = mark_of(root, steps[:-1])
        what = f"'{steps[-1]}' is missing"
    else:
        mark = mark_of(root, steps, of_key=kind == "invalid_key")
        message = problem["msg"].removeprefix("Value error, ")
        given = problem["input"]
        shown = f" (it is {given!r})" if isinstance(given, str | int | float) else ""
        what = f"{key}: {message[0].lower()}{message[1:]}{shown}" if key else message
    return f"{path}:{mark.line + 1}:{mark.column + 1}: {what}."


def _model_at(form: type[Sweep], steps: Sequence[Any]) -> type[BaseModel]:
    nested: dict[Any, type[BaseModel]] = {
        "pairs": EndpointPair if form is EndpointSweep else PairEntry,
        "prompts": PromptChoice,
        "what_if": WhatIfEntry,
    }
    return nested.get(steps[0], form) if steps else form
