"""A farm's rows for tests: specs, plans, machines, samples, and jobs run to their end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select, update

from farm.domain.decoding import Sampling, Settings, Speculation, SpeculationKind
from farm.domain.hardware import GIB, Gpu, Hardware, Machine, MachineKind
from farm.domain.job import Arm, JobSpec, ModelRef
from farm.domain.measurement import Parity, Sample
from farm.domain.prompt import Prompt, PromptSet
from farm.domain.provenance import Conditions, Provenance
from farm.gguf.header import Header
from farm.queue.routing import selectors_of
from farm.services.plan import Plan, PlannedModel
from farm.services.submit import Submission, submit
from farm.store import jobs
from farm.store.clock import now
from farm.store.database import reading, writing
from farm.store.results import add_samples
from farm.store.schema import (
    AttemptRow,
    Base,
    BuildRow,
    HardwareProfileRow,
    JobRow,
    MachineRow,
)

BUILD = "llama-cpp-python==0.3.36"
ENGINE = "in-process"
PROMPTS = tuple(Prompt(f"chat-{n}", "chat", f"Tell me about the number {n}.") for n in range(6))
DIGESTS = tuple(prompt.digest for prompt in PROMPTS)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def model(name: str, content: str | None = None) -> ModelRef:
    """Return a model file's reference; its content is its name unless told otherwise."""
    return ModelRef(f"/models/{name}.gguf", digest(content or name), name)


def spec(n_max: int = 4, **changes: Any) -> JobSpec:
    """Return a job's spec with K = n_max and whatever else is asked for."""
    usual = JobSpec(
        machine="any",
        engine=ENGINE,
        build=BUILD,
        target=model("target"),
        draft=model("draft"),
        speculation=Speculation(SpeculationKind.DRAFT_SIMPLE, n_max),
        sampling=Sampling(0.0, 0),
        settings=Settings(),
        category="chat",
        prompts=DIGESTS,
        generate_tokens=32,
        repeats=1,
    )
    return replace(usual, **changes)


def plan(specs: Iterable[JobSpec], name: str = "sweep") -> Plan:
    """Return a plan of these jobs, as if their model files had been read."""
    wanted = tuple(specs)
    refs = {ref.digest: ref for job in wanted for ref in (job.target, job.draft) if ref}
    return Plan(
        name=name,
        source=f"name: {name}\n",
        jobs=wanted,
        models={
            key: PlannedModel(ref, Header(Path(ref.path), 3, 32, 1000, {}, ()))
            for key, ref in refs.items()
        },
        prompt_set=PromptSet("six", PROMPTS),
        prompts=PROMPTS,
        refusals=(),
        need_bytes={job.pair_key: GIB for job in wanted},
    )


def queue_jobs(engine: Engine, specs: Iterable[JobSpec], name: str = "sweep") -> list[int]:
    """Submit jobs as one sweep and return their ids in order."""
    wanted = tuple(specs)
    submit(engine, plan(wanted, name))
    with reading(engine) as session:
        ids = {row.key: row.id for row in session.execute(select(JobRow.key, JobRow.id))}
    return [ids[job.key] for job in wanted]


def submit_jobs(engine: Engine, specs: Iterable[JobSpec], name: str = "sweep") -> Submission:
    return submit(engine, plan(specs, name))


def add_machine(
    engine: Engine,
    name: str = "bench-1",
    *,
    kind: MachineKind = MachineKind.CPU,
    builds: Sequence[str] = (BUILD,),
    memory_bytes: int = 64 * GIB,
    gpus: tuple[Gpu, ...] = (),
) -> jobs.Claimer:
    """Register a machine and return what a worker on it claims with."""
    hardware = Hardware(kind, f"CPU of {name}", 8, 16, memory_bytes, "x86_64", "linux", gpus)
    with writing(engine) as session:
        session.add(
            HardwareProfileRow(
                key=hardware.key, kind=kind, label=hardware.label, facts=asdict(hardware)
            )
        )
        session.flush()
        seen_at = session.scalars(select(now())).one()
        row = MachineRow(
            name=name,
            hardware_key=hardware.key,
            engines=[ENGINE],
            builds=list(builds),
            first_seen_at=seen_at,
            last_seen_at=seen_at,
        )
        session.add(row)
        session.flush()
        machine = Machine(name, hardware)
        return jobs.Claimer(
            row.id, f"{name}:1", selectors_of(machine), (ENGINE,), tuple(builds), machine
        )


def claim(engine: Engine, claimer: jobs.Claimer, held_pair: str | None = None) -> jobs.Claim | None:
    with writing(engine) as session:
        return jobs.claim(session, claimer, held_pair)


def claimed(engine: Engine, claimer: jobs.Claimer) -> jobs.Claim:
    """Claim a job that must be there."""
    found = claim(engine, claimer)
    assert found is not None
    return found


def expire_leases(engine: Engine) -> None:
    """Let every lease run out."""
    with writing(engine) as session:
        session.execute(update(JobRow).values(lease_expires_at=1.0).where(JobRow.state == "leased"))


def make_due(engine: Engine) -> None:
    """End every pause before a retry."""
    with writing(engine) as session:
        session.execute(update(JobRow).values(not_before=0.0).where(JobRow.state == "queued"))


def job(engine: Engine, job_id: int) -> JobRow:
    with reading(engine) as session:
        return session.scalars(select(JobRow).where(JobRow.id == job_id)).one()


def attempts(engine: Engine, job_id: int) -> list[AttemptRow]:
    with reading(engine) as session:
        query = select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.epoch)
        return list(session.scalars(query))


def contents(engine: Engine) -> dict[str, list[Any]]:
    """Return every row of every table."""
    with reading(engine) as session:
        return {
            table.name: sorted(map(tuple, session.execute(select(table))), key=repr)
            for table in Base.metadata.sorted_tables
        }


def sample(
    prompt: str = DIGESTS[0],
    arm: Arm = Arm.SPECULATIVE,
    tok_s: float = 50.0,
    **changes: Any,
) -> Sample:
    """Return a run of 101 tokens at the given decode speed."""
    speculative = arm is Arm.SPECULATIVE
    usual = Sample(
        prompt_digest=prompt,
        repeat=0,
        arm=arm,
        prompt_tokens=12,
        generated_tokens=101,
        prompt_ms=40.5,
        draft_prompt_ms=3.25 if speculative else 0.0,
        decode_ms=100 / tok_s * 1000,
        draft_ms=20.0 if speculative else 0.0,
        verify_ms=30.0 if speculative else 0.0,
        rounds=25 if speculative else 0,
        drafted=100 if speculative else 0,
        accepted=75 if speculative else 0,
        accepted_per_position=(25, 20, 18, 12) if speculative else (),
        drafted_per_position=(25, 25, 25, 25) if speculative else (),
        output_ids=tuple(range(101)),
        output_digest=digest("output"),
        peak_rss_bytes=5 * GIB,
        parity=Parity.EXACT if speculative else Parity.NOT_COMPARED,
        first_divergence=None,
        margin_logits=None,
    )
    return replace(usual, **changes)


def paired(ratios: Sequence[float], tok_s: float = 50.0, **changes: Any) -> list[Sample]:
    """Return both arms of one run per ratio, each of another prompt."""
    return [
        run
        for prompt, ratio in zip(DIGESTS, ratios, strict=False)
        for run in (
            sample(prompt, Arm.BASELINE, tok_s),
            sample(prompt, Arm.SPECULATIVE, tok_s * ratio, **changes),
        )
    ]


def conditions(machine: Machine, **changes: Any) -> Conditions:
    """Return the conditions of a server's job on a machine, with whatever else is asked for."""
    usual = Conditions(
        machine=machine.name,
        hardware=machine.hardware.rounded,
        os_release="Debian GNU/Linux 12",
        kernel="6.8.0",
        driver_version=None,
        cpu_governor="performance",
        power_source="mains",
        engine=ENGINE,
        build=BUILD,
        build_digest=digest(BUILD),
        build_commit="0c1e570",
        compiled="AVX2 = 1",
        libraries={"numpy": "2.4.6"},
        variables={},
        target_digest=model("target").digest,
        parameters={"command": ["llama-server", "-c", "2048", "-t", "-1", "--metrics"]},
    )
    return replace(usual, **changes)


def provenance(wanted: JobSpec, claimer: jobs.Claimer, **changes: Any) -> Provenance:
    """Return the provenance of a job; changes are of its conditions."""
    shared = ["llama-server", "-c", "2048", "-t", "-1", "--metrics"]
    return Provenance(
        conditions=conditions(claimer.machine, **changes),
        prompts=wanted.prompts_digest,
        draft_digest=wanted.draft.digest if wanted.draft else None,
        speculative={"command": [*shared, "--spec-draft-n-max", str(wanted.speculation.n_max)]},
        farm_version="0.1.0",
    )


def measure(
    engine: Engine,
    claimer: jobs.Claimer,
    samples: Sequence[Sample],
    build_digest: str | None = None,
    under: dict[str, Any] | None = None,
) -> jobs.Claim:
    """Claim the next job, store its samples and finish it. under: what of the usual conditions is
    another; None records no provenance, as farms once did."""
    held = claimed(engine, claimer)
    with writing(engine) as session:
        if under is not None:
            found = provenance(held.spec, claimer, **under)
            jobs.describe_attempt(
                session,
                held,
                provenance=found.to_payload(),
                conditions=found.conditions.digest,
                environment_before={"load_1min": 0.5, "memory_available_bytes": 5 * GIB},
                environment_after={"load_1min": 1.5, "memory_available_bytes": 4 * GIB},
            )
        if build_digest is not None:
            if session.get(BuildRow, build_digest) is None:
                session.add(BuildRow(digest=build_digest, name=BUILD, system_info=""))
                session.flush()
            jobs.describe_attempt(session, held, build_digest=build_digest)
        assert add_samples(session, held, list(samples))
        assert jobs.finish(session, held)
    return held
