"""The tables. Times are seconds since the Unix epoch by the database's clock."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Base of all tables; named constraints, so that every one can be migrated."""

    metadata = MetaData(naming_convention=NAMING)
    # Without the flag None is stored as JSON's null, which SQL counts as a value.
    type_annotation_map = {  # noqa: RUF012
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
        str: Text,
    }


class HardwareProfileRow(Base):
    """Stable hardware facts; machines with equal facts share a row."""

    __tablename__ = "hardware_profile"

    key: Mapped[str] = mapped_column(String(16), primary_key=True)
    kind: Mapped[str]
    label: Mapped[str]
    facts: Mapped[dict[str, Any]]


class MachineRow(Base):
    """A named machine and what it can run."""

    __tablename__ = "machine"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    hardware_key: Mapped[str] = mapped_column(ForeignKey("hardware_profile.key"))
    engines: Mapped[list[Any]]
    builds: Mapped[list[Any]]
    first_seen_at: Mapped[float]
    last_seen_at: Mapped[float]


class BuildRow(Base):
    """A compiled llama.cpp, identified by the digest of its libraries."""

    __tablename__ = "build"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str]
    system_info: Mapped[str]


class ModelFileRow(Base):
    """A GGUF file by content, or the model of a server that was there already: then sizes are
    unknown."""

    __tablename__ = "model_file"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str]
    architecture: Mapped[str]
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    parameter_count: Mapped[int | None] = mapped_column(BigInteger)
    is_calibration: Mapped[bool]


class PromptSetRow(Base):
    """A version of a prompt set: its prompts' digests in order."""

    __tablename__ = "prompt_set"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str]
    prompt_digests: Mapped[list[Any]]


class PromptRow(Base):
    """A prompt's text by content."""

    __tablename__ = "prompt"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    category: Mapped[str]
    text: Mapped[str]


class SweepRow(Base):
    """A submitted sweep file, kept as it was written."""

    __tablename__ = "sweep"

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str]
    source: Mapped[str]
    prompt_set_digest: Mapped[str] = mapped_column(ForeignKey("prompt_set.digest"))
    submitted_at: Mapped[float]


class SweepJobRow(Base):
    """Which jobs a sweep asks for; a job may serve several sweeps."""

    __tablename__ = "sweep_job"

    sweep_id: Mapped[int] = mapped_column(ForeignKey("sweep.id"), primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("job.id"), primary_key=True, index=True)


class JobRow(Base):
    """One cell to measure and its state. `spec` is the whole `JobSpec`; the columns beside it
    are the ones that claims and queries filter by."""

    __tablename__ = "job"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)
    pair_key: Mapped[str] = mapped_column(String(64))
    spec: Mapped[dict[str, Any]]
    selector: Mapped[str]
    engine: Mapped[str]
    build: Mapped[str]
    target_digest: Mapped[str] = mapped_column(ForeignKey("model_file.digest"))
    draft_digest: Mapped[str | None] = mapped_column(ForeignKey("model_file.digest"))
    kind: Mapped[str]
    n_max: Mapped[int]
    p_min: Mapped[float]
    accept: Mapped[str]
    temperature: Mapped[float]
    category: Mapped[str]

    state: Mapped[str]
    attempts: Mapped[int]
    not_before: Mapped[float]
    created_at: Mapped[float]
    finished_at: Mapped[float | None]
    rung_at: Mapped[float | None]
    lease_epoch: Mapped[int]
    lease_machine_id: Mapped[int | None] = mapped_column(ForeignKey("machine.id"))
    lease_worker: Mapped[str | None]
    lease_expires_at: Mapped[float | None]
    error_kind: Mapped[str | None]
    error_message: Mapped[str | None]

    __table_args__ = (
        Index("ix_job_state_not_before", "state", "not_before"),
        Index("ix_job_target_digest_category", "target_digest", "category"),
        # One benchmark at a time on a machine, held by the database itself.
        Index(
            "uq_job_leased_machine",
            "lease_machine_id",
            unique=True,
            sqlite_where=text("state = 'leased'"),
            postgresql_where=text("state = 'leased'"),
        ),
    )


class AttemptRow(Base):
    """One try at a job by one worker; `epoch` is the job's lease epoch of that try.

    provenance: everything that shaped the result. conditions: digest of the part of it that must
    be equal where results are averaged. checks: what was verified of the job as a whole.
    """

    __tablename__ = "attempt"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("job.id"))
    epoch: Mapped[int]
    machine_id: Mapped[int] = mapped_column(ForeignKey("machine.id"))
    worker: Mapped[str]
    started_at: Mapped[float]
    ended_at: Mapped[float | None]
    outcome: Mapped[str | None]
    error_kind: Mapped[str | None]
    error_message: Mapped[str | None]
    log_tail: Mapped[str | None]
    build_digest: Mapped[str | None] = mapped_column(ForeignKey("build.digest"))
    environment_before: Mapped[dict[str, Any] | None]
    environment_after: Mapped[dict[str, Any] | None]
    provenance: Mapped[dict[str, Any] | None]
    conditions: Mapped[str | None] = mapped_column(String(64))
    checks: Mapped[dict[str, Any] | None]

    __table_args__ = (
        UniqueConstraint("job_id", "epoch"),
        Index("ix_attempt_machine_id", "machine_id"),
    )


class SampleRow(Base):
    """One prompt x repeat x arm of one attempt; `arrays` is the blob of `farm.store.arrays`.

    NULL is what the engine does not report; an array it does not report is not in the blob.
    """

    __tablename__ = "sample"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("job.id"))
    epoch: Mapped[int]
    prompt_digest: Mapped[str] = mapped_column(ForeignKey("prompt.digest"))
    repeat: Mapped[int]
    arm: Mapped[str]
    prompt_tokens: Mapped[int]
    generated_tokens: Mapped[int]
    prompt_ms: Mapped[float]
    draft_prompt_ms: Mapped[float | None]
    decode_ms: Mapped[float]
    draft_ms: Mapped[float | None]
    verify_ms: Mapped[float | None]
    rounds: Mapped[int | None]
    drafted: Mapped[int | None]
    accepted: Mapped[int | None]
    output_digest: Mapped[str]
    peak_rss_bytes: Mapped[int | None] = mapped_column(BigInteger)
    parity: Mapped[str]
    first_divergence: Mapped[int | None]
    margin_logits: Mapped[float | None]
    control_token: Mapped[int | None]
    arrays: Mapped[bytes] = mapped_column(LargeBinary)

    __table_args__ = (UniqueConstraint("job_id", "epoch", "prompt_digest", "repeat", "arm"),)
