"""A farm's database with made-up but deterministic results, written through the farm's store."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from farm.domain import hardware as hardware_types
from farm.domain.decoding import AcceptRule, Sampling, Settings, Speculation, SpeculationKind
from farm.domain.hardware import GIB, Gpu, Hardware, MachineKind
from farm.domain.job import Arm, JobSpec, JobState, ModelRef
from farm.domain.measurement import Parity, Sample
from farm.domain.prompt import Category, Prompt
from farm.store import jobs
from farm.store.clock import now
from farm.store.database import open_database, writing
from farm.store.migrate import upgrade
from farm.store.results import add_samples
from farm.store.schema import (
    BuildRow,
    HardwareProfileRow,
    JobRow,
    MachineRow,
    ModelFileRow,
    PromptRow,
    PromptSetRow,
    SweepJobRow,
    SweepRow,
)

BUILD = "llama-cpp-python==0.3.36"
ENGINE = "in-process"
TOKENS = 129
PROMPTS_PER_CATEGORY = 6
SUBMITTED_AT = 1_760_000_000.0
TARGET, DRAFT = "Qwen2.5-Coder-7B-Instruct-Q4_K_M.gguf", "Qwen2.5-Coder-0.5B-Instruct-Q8_0.gguf"
CALIBRATION_TARGET, CALIBRATION_DRAFT = "cal-7b-target.gguf", "cal-0.5b-draft.gguf"

# Share of drafted tokens the target agrees with, as if each were drawn on its own.
ALPHA = {
    Category.CODE_COMPLETION: 0.90,
    Category.CODE_GENERATION: 0.86,
    Category.STRUCTURED_OUTPUT: 0.88,
    Category.TOOL_CALLS: 0.84,
    Category.SUMMARISATION: 0.72,
    Category.CHAT: 0.62,
    Category.CREATIVE_PROSE: 0.42,
    Category.MATH_REASONING: 0.78,
}
# Per-prompt deviations of ln(speedup); they sum to 0.
WOBBLE = (0.05, -0.03, 0.02, -0.05, 0.03, -0.02)


@dataclass(frozen=True)
class Machine:
    """A machine and how speculation costs on it: draft step and extra verified token, relative
    to a target step; baseline_tok_s sets the scale."""

    name: str
    hardware: Hardware
    draft_cost: float
    verify_cost: float
    baseline_tok_s: float


WORKSTATION = Machine(
    "workstation",
    Hardware(MachineKind.NVIDIA, "AMD Ryzen 9 7950X", 16, 32, 64 * GIB, "x86_64", "Linux 6.8",
             (Gpu("NVIDIA GeForce RTX 4090", 24 * GIB, "8.9"),)),
    0.10, 0.035, 118.0,
)  # fmt: skip
LAPTOP = Machine(
    "laptop",
    Hardware(MachineKind.CPU, "Intel Core i7-1260P", 12, 16, 16 * GIB, "x86_64", "Linux 6.8"),
    0.16, 0.11, 9.4,
)  # fmt: skip


def seeded(path: Path) -> str:
    """Make a database at `path` with two machines' results, a calibration pair's, and jobs in
    every state; return its URL."""
    url = empty(path)
    engine = open_database(url)
    with writing(engine) as session:
        _inventory(session)
    all_categories = tuple(Category)
    few = (Category.CODE_GENERATION, Category.CHAT, Category.CREATIVE_PROSE)
    two = (Category.CODE_COMPLETION, Category.CHAT)
    _measure(engine, "qwen-coder", WORKSTATION, TARGET, DRAFT, all_categories, (2, 4, 8, 16), 0.0)
    _measure(engine, "qwen-coder-warm", WORKSTATION, TARGET, DRAFT, few, (4, 8), 0.7)
    _measure(engine, "qwen-coder-laptop", LAPTOP, TARGET, DRAFT, few, (2, 4, 8), 0.0)
    _measure(
        engine, "calibration", LAPTOP, CALIBRATION_TARGET, CALIBRATION_DRAFT, two, (2, 4, 8), 0.0
    )
    with writing(engine) as session:
        _unfinished(session)
    engine.dispose()
    return url


def empty(path: Path) -> str:
    """Make a database at `path` with tables and no rows; return its URL."""
    url = f"sqlite:///{path}"
    engine = open_database(url)
    upgrade(engine)
    engine.dispose()
    return url


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _prompts(category: Category) -> list[Prompt]:
    return [
        Prompt(f"{category.value}-{index}", category.value, f"Prompt {index} about {category}.")
        for index in range(PROMPTS_PER_CATEGORY)
    ]


def _inventory(session: Session) -> None:
    for machine in (WORKSTATION, LAPTOP):
        hardware = machine.hardware
        session.add(
            HardwareProfileRow(
                key=hardware.key, kind=hardware.kind, label=hardware.label, facts=asdict(hardware)
            )
        )
        session.flush()
        session.add(
            MachineRow(
                name=machine.name, hardware_key=hardware.key, engines=[ENGINE, "llama-server"],
                builds=[BUILD], first_seen_at=now(), last_seen_at=now(),
            )
        )  # fmt: skip
    session.add(BuildRow(digest=_digest(BUILD), name=BUILD, system_info="AVX2 = 1"))
    models = [(TARGET, 7_600), (DRAFT, 494), (CALIBRATION_TARGET, 7_000), (CALIBRATION_DRAFT, 500)]
    for name, millions in models:
        session.add(
            ModelFileRow(
                digest=_digest(name), name=name, architecture="llama", size_bytes=millions * 10**6,
                parameter_count=millions * 10**6, is_calibration=name.startswith("cal-"),
            )
        )  # fmt: skip
    prompts = [prompt for category in Category for prompt in _prompts(category)]
    session.add_all(
        PromptRow(digest=prompt.digest, category=prompt.category, text=prompt.text)
        for prompt in prompts
    )
    session.add(
        PromptSetRow(
            digest=_digest("prompts"), name="seed",
            prompt_digests=[prompt.digest for prompt in prompts],
        )
    )  # fmt: skip


def _spec(
    machine: str, target: str, draft: str, category: Category, k: int, temperature: float
) -> JobSpec:
    return JobSpec(
        machine=f"name:{machine}",
        engine=ENGINE,
        build=BUILD,
        target=ModelRef(f"models/{target}", _digest(target), target),
        draft=ModelRef(f"models/{draft}", _digest(draft), draft),
        speculation=Speculation(SpeculationKind.DRAFT_SIMPLE, k, accept=AcceptRule.MATCH),
        sampling=Sampling(temperature, seed=1),
        settings=Settings(),
        category=category.value,
        prompts=tuple(prompt.digest for prompt in _prompts(category)),
        generate_tokens=TOKENS,
        repeats=1,
    )


def _submit(session: Session, name: str, specs: list[JobSpec]) -> list[int]:
    sweep = SweepRow(
        digest=_digest(name), name=name, source="", prompt_set_digest=_digest("prompts"),
        submitted_at=SUBMITTED_AT,
    )  # fmt: skip
    rows = [
        JobRow(
            key=spec.key, pair_key=spec.pair_key, spec=spec.to_payload(), selector=spec.machine,
            engine=spec.engine, build=spec.build, target_digest=spec.target.digest,
            draft_digest=spec.draft.digest if spec.draft else None,
            kind=spec.speculation.kind.value, n_max=spec.speculation.n_max,
            p_min=spec.speculation.p_min, accept=spec.speculation.accept.value,
            temperature=spec.sampling.temperature, category=spec.category,
            state=JobState.QUEUED.value, attempts=0, not_before=0.0, created_at=SUBMITTED_AT,
            lease_epoch=0,
        )
        for spec in specs
    ]  # fmt: skip
    session.add_all([sweep, *rows])
    session.flush()
    session.add_all(SweepJobRow(sweep_id=sweep.id, job_id=row.id) for row in rows)
    return [row.id for row in rows]


def _claimer(session: Session, machine: str) -> jobs.Claimer:
    machine_id = session.query(MachineRow.id).filter(MachineRow.name == machine).scalar()
    hardware = next(one.hardware for one in (WORKSTATION, LAPTOP) if one.name == machine)
    return jobs.Claimer(
        machine_id,
        f"{machine}/1",
        (f"name:{machine}",),
        (ENGINE,),
        (BUILD,),
        hardware_types.Machine(machine, hardware),
    )


def _measure(
    engine: Engine,
    sweep: str,
    machine: Machine,
    target: str,
    draft: str,
    categories: tuple[Category, ...],
    ks: tuple[int, ...],
    temperature: float,
) -> None:
    with writing(engine) as session:
        specs = [
            _spec(machine.name, target, draft, category, k, temperature)
            for category in categories
            for k in ks
        ]
        _submit(session, sweep, specs)
        claimer = _claimer(session, machine.name)
        while claim := jobs.claim(session, claimer):
            jobs.describe_attempt(session, claim, build_digest=_digest(BUILD))
            add_samples(session, claim, _samples(machine, claim.spec))
            jobs.finish(session, claim)


def _samples(machine: Machine, spec: JobSpec) -> list[Sample]:
    k, category = spec.speculation.n_max, Category(spec.category)
    alpha = ALPHA[category] - 0.1 * spec.sampling.temperature
    accepted_per_round = alpha * (1 - alpha**k) / (1 - alpha)
    rounds = round((TOKENS - 1) / (1 + accepted_per_round))
    cost = 1 + k * (machine.draft_cost + machine.verify_cost)
    speedup = (1 + accepted_per_round) / cost
    baseline_ms = (TOKENS - 1) / machine.baseline_tok_s * 1000
    samples = []
    for index, prompt in enumerate(spec.prompts):
        speculative_ms = baseline_ms / (speedup * math.exp(WOBBLE[index]))
        parity = _parity(spec, category, k, index)
        for arm, decode_ms in ((Arm.BASELINE, baseline_ms), (Arm.SPECULATIVE, speculative_ms)):
            speculates = arm is Arm.SPECULATIVE
            samples.append(
                Sample(
                    prompt_digest=prompt, repeat=0, arm=arm, prompt_tokens=200,
                    generated_tokens=TOKENS, prompt_ms=150.0, draft_prompt_ms=20.0 * speculates,
                    decode_ms=decode_ms, draft_ms=0.3 * decode_ms * speculates,
                    verify_ms=0.7 * decode_ms * speculates, rounds=rounds * speculates,
                    drafted=rounds * k * speculates,
                    accepted=round(rounds * accepted_per_round) * speculates,
                    accepted_per_position=(), drafted_per_position=(), output_ids=(1, 2, 3),
                    output_digest=_digest(prompt), peak_rss_bytes=8 * GIB,
                    parity=parity if speculates else Parity.EXACT,
                    first_divergence=None, margin_logits=None,
                )
            )  # fmt: skip
    return samples


def _parity(spec: JobSpec, category: Category, k: int, index: int) -> Parity:
    if spec.sampling.temperature > 0:
        return Parity.NOT_COMPARED
    if category is Category.TOOL_CALLS and k == 16 and index == 0:
        return Parity.MISMATCH
    if category is Category.MATH_REASONING and index == 1:
        return Parity.NEAR_TIE
    return Parity.EXACT


def _unfinished(session: Session) -> None:
    """Leave one job running, one failed for good, one waiting for its retry, one cancelled and
    two queued."""
    machine = LAPTOP.name
    specs = [_spec(machine, TARGET, DRAFT, Category.SUMMARISATION, k, 0.0) for k in range(1, 7)]
    ids = _submit(session, "laptop-night", specs)
    claimer = _claimer(session, machine)
    first = jobs.claim(session, claimer)
    assert first is not None
    jobs.fail(session, first, "too-little-memory", "The pair needs 18.2 GiB and 14.9 GiB are free.")
    second = jobs.claim(session, claimer)
    assert second is not None
    jobs.fail(session, second, "crash", "llama.cpp ended with signal 11 after 3 of 6 prompts.")
    jobs.cancel(session, [ids[5]])
    assert jobs.claim(session, claimer) is not None
