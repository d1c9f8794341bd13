"""From a sweep file to the jobs it means, checked as far as can be without running."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from farm.builds.tools import newest
from farm.domain.decoding import (
    AcceptRule,
    Sampling,
    Settings,
    Speculation,
    SpeculationKind,
    WhatIf,
)
from farm.domain.engines import LLAMA_SERVER, why_not
from farm.domain.job import JobSpec, ModelRef
from farm.domain.prompt import PLAIN_TEXT, Prompt, PromptSet
from farm.errors import UserError
from farm.gguf.calibration import is_calibration
from farm.gguf.compat import check_pair
from farm.gguf.header import Header, read_header
from farm.gguf.heads import misfits, most_drafted
from farm.gguf.identity import digest_of
from farm.gguf.memory import pair_need_bytes
from farm.services.cells import depth_prompt, require_room, require_template, settings_of
from farm.services.plan_endpoints import ServedModel, endpoint_jobs
from farm.services.prompts import find_prompt_set
from farm.services.sweepfile import (
    INSTALLED,
    EndpointSweep,
    PairEntry,
    Sweep,
    SweepFile,
    load_sweep,
)

# Every job's key travels in one statement; SQLite takes 32,766 values in one.
MAX_JOBS = 20_000

Progress = Callable[[Path, int, int], None]


@dataclass(frozen=True)
class PlannedModel:
    """A model file that jobs refer to."""

    ref: ModelRef
    header: Header

    @property
    def architecture(self) -> str:
        """Return the architecture's name."""
        return self.header.architecture

    @property
    def size_bytes(self) -> int | None:
        """Return the size of its tensors."""
        return self.header.tensor_bytes

    @property
    def parameter_count(self) -> int | None:
        """Return the number of its parameters."""
        return self.header.parameter_count

    @property
    def is_calibration(self) -> bool:
        """Say whether it is one of a calibration pair's files."""
        return is_calibration(self.header)


@dataclass(frozen=True)
class Refusal:
    """A pair that can't run and why."""

    target: str
    draft: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a sweep file means: its jobs in order, and what they refer to.

    need_bytes maps a job's pair_key to the memory that the pair takes at its context size.
    left_out: cells that would never draft, their n_min being above their K.
    """

    name: str
    source: str
    jobs: tuple[JobSpec, ...]
    models: Mapping[str, PlannedModel | ServedModel]
    prompt_set: PromptSet
    prompts: tuple[Prompt, ...]
    refusals: tuple[Refusal, ...]
    need_bytes: dict[str, int]
    left_out: int = 0


def plan_sweep(path: Path, progress: Progress | None = None) -> Plan:
    """Read, check and expand a sweep file. Model paths count from the file's own folder.

    Expansion is deterministic, K fastest; cells that a setting can't tell apart (a seed at
    temperature 0) are one job. progress is called with (file, bytes hashed, bytes in all) while
    model digests are computed. Raises UserError on the first thing that is wrong; an incompatible
    pair is a refusal.
    """
    sweep, source = load_sweep(path)
    prompt_set = find_prompt_set(sweep.prompts.set, path.parent)
    chosen = _choose_prompts(sweep, prompt_set)
    if isinstance(sweep, EndpointSweep):
        served = list(itertools.islice(endpoint_jobs(sweep, chosen), MAX_JOBS + 1))
        if len(served) > MAX_JOBS:
            raise _too_many(path)
        return Plan(
            name=sweep.name,
            source=source,
            jobs=tuple({job.key: job for job in served}.values()),
            models={job.target.digest: ServedModel(job.target) for job in served},
            prompt_set=prompt_set,
            prompts=_in_order(chosen),
            refusals=(),
            # What a server takes, it has taken already.
            need_bytes={job.pair_key: 0 for job in served},
        )
    build = _build(sweep.engine, sweep.build)
    models: dict[str, PlannedModel] = {}
    refusals: list[Refusal] = []
    jobs: dict[str, JobSpec] = {}
    need_bytes: dict[str, int] = {}
    left_out: set[str] = set()
    fillers = _fillers(sweep, prompt_set, chosen)
    for entry in sweep.pairs:
        target = _model(entry.target, path.parent, progress)
        models[target.ref.digest] = target
        kind = SpeculationKind(entry.kind)
        for draft in _drafts(entry, path.parent, progress):
            if draft is not None:
                compatibility = check_pair(target.header, draft.header, kind)
                if not compatibility.compatible:
                    refusals.append(Refusal(target.ref.name, draft.ref.name, compatibility.reasons))
                    continue
                models[draft.ref.digest] = draft
            _check_heads(kind, sweep.k, target, draft)
            for job in _cells(sweep, entry, target, draft, chosen, fillers, build):
                if job.speculation.n_min > job.speculation.n_max:
                    left_out.add(job.key)
                else:
                    jobs[job.key] = job
                if len(jobs) + len(left_out) > MAX_JOBS:
                    raise _too_many(path)
                if job.pair_key not in need_bytes:
                    headers = target.header, draft.header if draft else None
                    need_bytes[job.pair_key] = sum(pair_need_bytes(job.settings, *headers))
    return Plan(
        name=sweep.name,
        source=source,
        jobs=tuple(jobs.values()),
        models=models,
        prompt_set=prompt_set,
        prompts=(*_in_order(chosen), *fillers.values()),
        refusals=tuple(refusals),
        need_bytes=need_bytes,
        left_out=len(left_out),
    )


def _too_many(path: Path) -> UserError:
    return UserError(
        f"{path} expands to more than {MAX_JOBS} jobs, the most for one sweep; split it. Nothing "
        "was submitted."
    )


def _in_order(chosen: dict[str, list[Prompt]]) -> tuple[Prompt, ...]:
    return tuple(prompt for prompts in chosen.values() for prompt in prompts)


def _choose_prompts(sweep: Sweep, prompt_set: PromptSet) -> dict[str, list[Prompt]]:
    categories = sweep.prompts.categories or list(prompt_set.categories)
    unknown = [category for category in categories if category not in prompt_set.categories]
    if unknown:
        raise UserError(
            f"The prompt set '{prompt_set.name}' has no category '{unknown[0]}'; it has "
            f"{', '.join(prompt_set.categories)}."
        )
    return {
        category: [prompt for prompt in prompt_set.prompts if prompt.category == category][
            : sweep.prompts.per_category
        ]
        for category in categories
    }


def _fillers(
    sweep: SweepFile, prompt_set: PromptSet, chosen: dict[str, list[Prompt]]
) -> dict[str, Prompt]:
    """Return the text that fills each category's context, none where no depth is asked for."""
    if not any(sweep.depth_tokens):
        return {}
    return {category: depth_prompt(prompt_set, members) for category, members in chosen.items()}


def _model(name: str, folder: Path, progress: Progress | None) -> PlannedModel:
    path = (folder / Path(name).expanduser()).resolve()
    header = read_header(path)
    digest = digest_of(path, None if progress is None else lambda *at: progress(path, *at))
    return PlannedModel(ModelRef(str(path), digest, path.stem), header)


def _drafts(
    entry: PairEntry, folder: Path, progress: Progress | None
) -> Iterator[PlannedModel | None]:
    if entry.drafts is None:
        yield None
    for draft in entry.drafts or ():
        yield _model(draft, folder, progress)


def _check_heads(
    kind: SpeculationKind, k: list[int], target: PlannedModel, draft: PlannedModel | None
) -> None:
    if draft is None and (reasons := misfits(kind, target.header, None)):
        remedy = " (or name a file that has them with 'drafts')" if kind.takes_draft else ""
        raise UserError(
            f"kind {kind}, target {target.ref.name}: {reasons[0]}; take another target{remedy}. "
            "Nothing was submitted."
        )
    most = most_drafted(kind, target.header, draft.header if draft else None)
    if most is not None and max(k) > most:
        raise UserError(
            f"kind {kind}, K = {max(k)}: {(draft or target).ref.name} can draft {most} tokens, and "
            f"llama.cpp would draft no more and not say so; leave K above {most} out. "
            "Nothing was submitted."
        )


def _cells(
    sweep: SweepFile,
    entry: PairEntry,
    target: PlannedModel,
    draft: PlannedModel | None,
    prompts: dict[str, list[Prompt]],
    fillers: dict[str, Prompt],
    build: str,
) -> Iterator[JobSpec]:
    kind = SpeculationKind(entry.kind)
    found = settings_of(sweep, kind, target.header, draft.header if draft else None)
    everything = list(itertools.chain(*prompts.values()))
    # The deepest first, so that what is asked for is enough for all.
    for settings in sorted(found, key=lambda settings: -settings.depth_tokens):
        require_room(settings, sweep, everything, target.header)
    if any(settings.chat_template == "on" for settings in found):
        require_template(target.header, everything)
    for settings, temperature, seed, (
        category,
        members,
    ), p_min, n_min, accept, what_if, n_max, machine in itertools.product(
        found,
        sweep.temperatures,
        sweep.seeds,
        prompts.items(),
        sweep.p_min,
        sweep.n_min,
        sweep.accept_rules,
        sweep.what_ifs,
        sweep.k,
        sweep.machines,
    ):
        speculation = _speculation(sweep, kind, n_max, n_min, p_min, accept, what_if, temperature)
        yield JobSpec(
            machine=machine,
            engine=sweep.engine,
            build=build,
            target=target.ref,
            draft=draft.ref if draft else None,
            speculation=speculation,
            sampling=Sampling(float(temperature), seed if temperature > 0 else 0),
            settings=_as_measured(settings, category, found),
            category=category,
            prompts=tuple(prompt.digest for prompt in members),
            generate_tokens=sweep.generate_tokens,
            repeats=sweep.repeats,
            label=sweep.label,
            depth_text=fillers[category].digest if settings.depth_tokens else None,
        )


def _as_measured(settings: Settings, category: str, found: Sequence[Settings]) -> Settings:
    """Return a cell's settings. No template goes around plain text, so that a sweep with and
    without one measures it once, without; else it stays in one table with the other categories."""
    plain = replace(settings, chat_template="off")
    return plain if category in PLAIN_TEXT and plain in found else settings


def _speculation(
    sweep: SweepFile,
    kind: SpeculationKind,
    n_max: int,
    n_min: int,
    p_min: float,
    accept: AcceptRule,
    what_if: WhatIf | None,
    temperature: float,
) -> Speculation:
    speculation = Speculation(
        kind=kind,
        n_max=n_max,
        n_min=n_min if kind.has_n_min else 0,
        p_min=float(p_min) if kind.takes_draft else 0.0,
        # At temperature 0 both rules are one comparison, and no seed is used.
        accept=accept if temperature > 0 else AcceptRule.EXACT,
        what_if=what_if,
    )
    if reason := why_not(sweep.engine, speculation, temperature):
        raise UserError(f"kind {kind}, K = {n_max}: {reason}. Nothing was submitted.")
    return speculation


def _build(engine: str, build: str) -> str:
    if build != INSTALLED:
        return build
    if engine == LLAMA_SERVER:
        return newest().name
    try:
        return f"llama-cpp-python=={metadata.version('llama-cpp-python')}"
    except metadata.PackageNotFoundError:
        raise UserError(
            "llama-cpp-python is not installed here, so 'build: installed' means nothing; name "
            "the workers' build in the sweep, such as build: llama-cpp-python==0.3.36."
        ) from None
