"""Claim -> load -> run -> store: one job after another, whatever happens to the child."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Engine as Database
from sqlalchemy import select

from farm.domain.hardware import MachineKind
from farm.domain.job import JobSpec
from farm.domain.measurement import Sample
from farm.errors import BenchmarkError, InfrastructureError, UserError
from farm.gguf.calibration import Law, calibration_prompt
from farm.gguf.chat_template import ChatTemplate
from farm.gguf.header import Header
from farm.store import jobs
from farm.store.database import reading, writing
from farm.store.insert import insert_missing
from farm.store.schema import BuildRow, PromptRow
from worker import provenance
from worker.engines.contract import Engine, EngineFactory, PreparedPrompt
from worker.engines.registry import ENGINES
from worker.heart import Heart
from worker.law_check import LawCheck, require_law
from worker.models import PairHere, pair_elsewhere, pair_in_files, require_memory
from worker.probe.cpu import decoding_threads
from worker.probe.environment import Environment, read_environment
from worker.spool import Spool

log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """The job belongs to someone else now; nothing more may be written for it."""


class Stopping(Exception):
    """The worker was asked to stop; the job goes back unharmed."""


class Executor:
    """Works off due jobs. Keeps the last pair loaded for the next job that shares it."""

    def __init__(
        self,
        database: Database,
        claimer: jobs.Claimer,
        home: Path,
        models_folder: Path | None,
        job_timeout_s: float,
    ) -> None:
        self._database = database
        self._claimer = claimer
        self._home = home
        self._models_folder = models_folder
        self._job_timeout_s = job_timeout_s
        self._threads = decoding_threads()
        self._spool = Spool(home / "spool")
        self._engine: Engine | None = None
        self._engine_pair: str | None = None
        self._busy = threading.Lock()
        self._stopping = threading.Event()

    def work_off(self) -> int:
        """Run every due job this machine can run; return how many. One caller at a time."""
        if not self._busy.acquire(blocking=False):
            return 0
        done = 0
        try:
            self._spool.replay(self._database)
            while not self._stopping.is_set() and (claim := self._claim()) is not None:
                self._execute(claim)
                done += 1
        except InfrastructureError as error:
            log.warning("%s", error)
        finally:
            self._unload()
            self._busy.release()
        return done

    def offer(self, claimer: jobs.Claimer) -> None:
        """Claim with this from now on: builds come and go while a worker runs."""
        self._claimer = claimer

    def stop(self) -> None:
        """Ask the running job to be given back, and claim no more."""
        self._stopping.set()

    def wait_stopped(self, limit_s: float) -> bool:
        """Wait until `stop` was called or the limit passed; say whether it was called."""
        return self._stopping.wait(limit_s)

    def _claim(self) -> jobs.Claim | None:
        with writing(self._database) as session:
            jobs.reap(session)
            return jobs.claim(session, self._claimer, self._engine_pair)

    def _execute(self, claim: jobs.Claim) -> None:
        log.info("job %d: %s", claim.job_id, _summary(claim.spec))
        try:
            with Heart(self._database, claim) as heart:
                self._measure(claim, heart)
            with writing(self._database) as session:
                if not jobs.finish(session, claim):
                    raise LeaseLost
            self._spool.forget(claim)
            log.info("job %d: done", claim.job_id)
        except LeaseLost:
            log.warning("job %d: its lease was lost; stopped", claim.job_id)
            self._unload()
        except Stopping:
            self._unload()
            with writing(self._database) as session:
                jobs.release(session, claim, "The worker was stopped.")
        except BenchmarkError as error:
            self._fail(claim, error)
        except UserError as error:
            # An unreadable file, a category the pair does not have: trying again is vain.
            self._fail(claim, BenchmarkError("bad-request", str(error)))
        except Exception as error:
            self._unload()
            with writing(self._database) as session:
                jobs.fail(session, claim, "worker-error", f"{type(error).__name__}: {error}")
            log.exception("job %d: the worker itself failed", claim.job_id)

    def _fail(self, claim: jobs.Claim, error: BenchmarkError) -> None:
        tail = error.log_tail or (self._engine.log_tail() if self._engine else None)
        self._unload()
        with writing(self._database) as session:
            state = jobs.fail(session, claim, error.kind, str(error), tail)
        log.warning("job %d: %s (%s; now %s)", claim.job_id, error, error.kind, state)

    def _measure(self, claim: jobs.Claim, heart: Heart) -> None:
        spec = self._on_this_machine(claim.spec)
        deadline = time.monotonic() + self._job_timeout_s
        factory = ENGINES[spec.engine]
        pair = (
            pair_in_files(spec, self._models_folder)
            if factory.needs_files
            else pair_elsewhere(spec)
        )
        prompts = self._prompts(spec, pair.header, pair.law)
        before = self._environment()
        engine = self._loaded(claim, spec, factory, pair, deadline)
        build = engine.build
        chosen = {"decode_threads": spec.settings.threads, "isolation": engine.isolation}
        found = provenance.gather(spec, self._claimer.machine, before, engine)
        with writing(self._database) as session:
            kept = {"digest": build.digest, "name": build.name, "system_info": build.system_info}
            insert_missing(session, BuildRow, [kept])
            jobs.describe_attempt(
                session,
                claim,
                environment_before=before.to_payload() | chosen,
                build_digest=build.digest,
                **provenance.recorded(found),
            )
        # A made-up acceptance follows no law of the target's.
        followed = pair.law if spec.speculation.what_if is None else None
        law_check = LawCheck(followed, spec.sampling.temperature, prompts)
        for sample in engine.run(spec, prompts, deadline):
            if heart.lost.is_set():
                raise LeaseLost
            if self._stopping.is_set():
                raise Stopping
            if sample is not None:
                self._store(claim, sample)
                law_check.add(sample)
        if not self._spool.flush(self._database, claim, patience_s=jobs.LEASE_SECONDS):
            raise LeaseLost
        after, checks = self._environment(), law_check.result()
        with writing(self._database) as session:
            jobs.describe_attempt(
                session,
                claim,
                environment_after=after.to_payload(),
                checks=checks,
                **provenance.recorded(provenance.settled(found, after)),
            )
        require_law(checks)

    @property
    def _has_nvidia(self) -> bool:
        return f"kind:{MachineKind.NVIDIA}" in self._claimer.selectors

    def _environment(self) -> Environment:
        return read_environment(has_nvidia=self._has_nvidia)

    def _on_this_machine(self, spec: JobSpec) -> JobSpec:
        """Fill in what a job leaves to the machine. llama.cpp's library takes 4 threads whatever
        the machine, and threads beyond the cores wait for each other at every step. Servers that
        run already have theirs."""
        if not ENGINES[spec.engine].needs_files:
            return spec
        threads = spec.settings.threads or self._threads
        return replace(spec, settings=replace(spec.settings, threads=threads))

    def _loaded(
        self,
        claim: jobs.Claim,
        spec: JobSpec,
        factory: EngineFactory,
        pair: PairHere,
        deadline: float,
    ) -> Engine:
        if self._engine is not None and self._engine_pair == spec.pair_key:
            return self._engine
        self._unload()
        if factory.needs_files:
            require_memory(spec, pair.target, pair.draft, has_gpu=self._has_nvidia)
        log_file = self._home / "logs" / f"job-{claim.job_id}-{claim.epoch}.log"
        self._engine = factory.load(spec, pair.target, pair.draft, log_file, deadline)
        self._engine_pair = spec.pair_key
        return self._engine

    def _unload(self) -> None:
        if self._engine is not None:
            self._engine.end()
        self._engine = self._engine_pair = None

    def _prompts(
        self, spec: JobSpec, header: Header | None, law: Law | None
    ) -> list[PreparedPrompt]:
        wanted = [*spec.prompts, *([spec.depth_text] if spec.depth_text else [])]
        with reading(self._database) as session:
            rows = session.execute(
                select(PromptRow.digest, PromptRow.text).where(PromptRow.digest.in_(wanted))
            )
            texts = {row.digest: row.text for row in rows}
        asked = [texts[digest] for digest in spec.prompts]
        if law is not None:
            asked = [
                calibration_prompt(law, spec.category, text, index)
                for index, text in enumerate(asked)
            ]
        elif header is not None and spec.is_chat:
            template = ChatTemplate(header)
            asked = [template.prompt(text) for text in asked]
        depth_text = texts[spec.depth_text] if spec.depth_text else ""
        return [
            PreparedPrompt(digest, text, depth_text)
            for digest, text in zip(spec.prompts, asked, strict=True)
        ]

    def _store(self, claim: jobs.Claim, sample: Sample) -> None:
        """Put the sample on disk, then in SQL; while SQL is away it waits on disk."""
        self._spool.keep(claim, sample)
        if not self._spool.flush(self._database, claim, patience_s=0.0):
            raise LeaseLost


def _summary(spec: JobSpec) -> str:
    speculation = spec.speculation
    pair = f"{spec.target.name} + {spec.draft.name}" if spec.draft else spec.target.name
    return (
        f"{pair}, {speculation.kind} K={speculation.k_text}, {spec.category}, "
        f"temperature {spec.sampling.temperature:g}"
    )
