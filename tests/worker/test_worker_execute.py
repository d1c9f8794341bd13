"""The executor with a real database and the real child: from submitted jobs to stored samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from small_farm import TWO_CATEGORIES, SmallFarm, tapped
from sqlalchemy import select
from tiny_mixture import write_mixture

from farm.domain.job import Arm, JobSpec, JobState
from farm.domain.measurement import Parity
from farm.domain.prompt import Category
from farm.gguf.calibration import Law, start_state
from farm.services.recommend import recommendations
from farm.store.arrays import unpack
from farm.store.database import reading
from farm.store.queries import measured_samples
from farm.store.schema import BuildRow, PromptRow
from worker import execute, isolation
from worker.engines.in_process import InProcessFactory
from worker.probe import memory
from worker.probe.environment import read_environment


@pytest.fixture(autouse=True)
def quick_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the environment without watching the load for a fifth of a second."""
    monkeypatch.setattr(execute, "read_environment", partial(read_environment, 0.01))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by a target's name with each child that loads it."""
    names: list[str] = []
    honest = InProcessFactory.load

    def load(self: InProcessFactory, spec: Any, target: Path, *rest: Any) -> Any:
        names.append(target.name)
        return honest(self, spec, target, *rest)

    monkeypatch.setattr(InProcessFactory, "load", load)
    return names


def texts(farm: SmallFarm) -> dict[str, str]:
    with reading(farm.database) as session:
        return {row.digest: row.text for row in session.scalars(select(PromptRow))}


def test_a_sweep_is_measured_whole(small_farm: SmallFarm, law: Law, loads: list[str]):
    small_farm.submit(k=[2, 4], categories=TWO_CATEGORIES)

    done = small_farm.executor().work_off()

    assert done == 4
    assert small_farm.states() == [JobState.DONE] * 4
    assert all(job.error_kind is job.lease_expires_at is None for job in small_farm.jobs())
    prompt_texts = texts(small_farm)
    for job in small_farm.jobs():
        samples = small_farm.samples(job_id=job.id)
        prompts = job.spec["prompts"]
        assert Counter((s.prompt_digest, s.arm) for s in samples) == {
            (digest, arm): 1 for digest in prompts for arm in Arm
        }
        for sample in samples:
            number = prompts.index(sample.prompt_digest)
            start = start_state(law, job.category, prompt_texts[sample.prompt_digest], number)
            arrays = unpack(sample.arrays)
            assert arrays["output_ids"] == law.greedy_walk(start, 12)
            if sample.arm == Arm.BASELINE:
                assert (sample.rounds, sample.parity) == (0, Parity.NOT_COMPARED)
                continue
            counts = law.greedy_rounds(start, 12, job.n_max)
            assert sample.parity == Parity.EXACT
            assert (sample.rounds, sample.drafted, sample.accepted) == (
                counts.target_passes,
                counts.drafted,
                counts.accepted,
            )
            assert arrays["accepted_per_position"] == counts.accepted_per_position
    # All four jobs share the pair and its settings.
    assert loads == ["target.gguf"]
    assert small_farm.spooled == []


def test_a_sweep_over_depths_is_measured_and_its_filler_is_no_content(
    small_farm: SmallFarm, law: Law
):
    small_farm.submit(k=[2], categories=["chat"], more="depth_tokens: [0, 512]\n")

    small_farm.executor().work_off()

    flat, deep = small_farm.jobs()
    for sample in small_farm.samples(job_id=deep.id):
        (before,) = small_farm.samples(
            job_id=flat.id, prompt_digest=sample.prompt_digest, arm=sample.arm
        )
        assert sample.prompt_tokens == before.prompt_tokens + 512
        assert sample.output_digest == before.output_digest
        assert (sample.drafted, sample.accepted) == (before.drafted, before.accepted)
    with reading(small_farm.database) as session:
        found = recommendations(session)
        filler = session.get(PromptRow, deep.spec["depth_text"])
    assert filler is not None
    assert filler.category == "depth"
    assert flat.spec["depth_text"] is None
    assert [item.setup.category for item in found] == ["chat", "chat"]
    assert {item.setup.settings.depth_tokens for item in found} == {0, 512}


def test_prompts_are_asked_in_the_targets_own_form(small_farm: SmallFarm, law: Law):
    """A random model stands in for a chat model: how many tokens it reads tells the form."""
    around = "{{ messages[0].content }}" + "!" * 40
    write_mixture(small_farm.folder / "target.gguf", law, chat_template=around)
    small_farm.submit(k=[2], categories=["chat"], more="chat_template: [auto, off]\n")

    small_farm.executor().work_off()

    chat, plain = small_farm.jobs()
    assert chat.spec["settings"]["chat_template"] == "on"
    for sample in small_farm.samples(job_id=chat.id):
        (before,) = small_farm.samples(
            job_id=plain.id, prompt_digest=sample.prompt_digest, arm=sample.arm
        )
        assert sample.prompt_tokens == before.prompt_tokens + 40


def test_build_and_environment_are_recorded_with_each_attempt(small_farm: SmallFarm):
    small_farm.submit(k=[2], categories=TWO_CATEGORIES)

    small_farm.executor().work_off()

    with reading(small_farm.database) as session:
        (build,) = session.scalars(select(BuildRow))
    assert build.name == small_farm.jobs()[0].build
    for attempt in small_farm.attempts():
        assert attempt.outcome == "done"
        assert attempt.build_digest == build.digest
        assert attempt.ended_at is not None
        assert attempt.ended_at >= attempt.started_at
        for environment in (attempt.environment_before, attempt.environment_after):
            assert environment is not None
            assert environment["kernel"]
            assert json.loads(json.dumps(environment)) == environment
        assert attempt.environment_before["isolation"] == isolation.describe()


def test_jobs_of_the_loaded_pair_come_first(
    small_farm: SmallFarm, tiny_pair: tuple[Path, Path], loads: list[str]
):
    small_farm.submit(k=[2], categories=["chat"])
    sweep = small_farm.folder / "sweep.yaml"
    small_farm.submit(k=[4], categories=["chat"])
    assert "context_tokens: 1024" in sweep.read_text()
    # Between the two lies a job that needs the pair with another context.
    small_farm.sql(
        "update job set pair_key = 'other', spec = json_set(spec, '$.settings.context_tokens', 512)"
        " where id = 1"
    )
    small_farm.submit(k=[8], categories=["chat"])
    order: list[int] = []
    executor = small_farm.executor()
    measure = executor._measure

    def note(claim: Any, heart: Any) -> None:
        order.append(claim.job_id)
        measure(claim, heart)

    executor._measure = note  # type: ignore[method-assign]
    small_farm.sql("update job set not_before = 4e9 where id = 1")
    with tapped(lambda _engine, _count: small_farm.sql("update job set not_before = 0")):
        executor.work_off()

    assert order == [2, 3, 1]
    assert len(loads) == 2


def test_sampled_jobs_are_measured_without_a_parity(small_farm: SmallFarm):
    small_farm.submit(k=[3], categories=["chat"], temperatures=0.8)

    small_farm.executor().work_off()

    assert small_farm.states() == [JobState.DONE]
    assert {sample.parity for sample in small_farm.samples()} == {Parity.NOT_COMPARED}


def test_no_child_is_left_when_the_work_is_done(small_farm: SmallFarm):
    small_farm.submit(k=[2], categories=["chat"])
    pids: list[int] = []

    with tapped(lambda engine, _: pids.append(engine._child.pid)):
        small_farm.executor().work_off()

    assert pids
    assert not psutil.pid_exists(pids[0])


def test_work_that_other_machines_must_do_is_left_alone(small_farm: SmallFarm):
    small_farm.submit(k=[2], categories=["chat"])
    small_farm.sql("update job set selector = 'kind:nvidia'")

    assert small_farm.executor().work_off() == 0
    assert small_farm.states() == [JobState.QUEUED]


def fail_once(farm: SmallFarm) -> tuple[str | None, str | None]:
    """Work off a farm's one job and return what it failed with, in job and attempt alike."""
    assert farm.executor().work_off() == 1
    (job,), (attempt,) = farm.jobs(), farm.attempts()
    assert job.state == JobState.FAILED
    assert (attempt.outcome, attempt.error_kind) == ("failed", job.error_kind)
    assert attempt.error_message == job.error_message
    assert attempt.ended_at is not None
    assert farm.samples() == []
    return job.error_kind, job.error_message


def remove(farm: SmallFarm, _patch: pytest.MonkeyPatch) -> None:
    (farm.folder / "target.gguf").unlink()


def exchange(farm: SmallFarm, _patch: pytest.MonkeyPatch) -> None:
    (farm.folder / "draft.gguf").write_bytes((farm.folder / "target.gguf").read_bytes())


def fill_memory(_farm: SmallFarm, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20, total=2**36))
    limits = SimpleNamespace(memory_available_bytes=None)
    patch.setattr(memory, "read_cgroup_limits", lambda: limits)
    patch.setattr(execute, "read_environment", lambda **_: SimpleNamespace(to_payload=dict))


def ask_too_much(farm: SmallFarm, _patch: pytest.MonkeyPatch) -> None:
    farm.sql("update job set spec = json_set(spec, '$.generate_tokens', 1020)")


def name_no_such_category(farm: SmallFarm, _patch: pytest.MonkeyPatch) -> None:
    farm.sql("update job set spec = json_set(spec, '$.category', 'poems')")


@pytest.mark.parametrize(
    ("spoil", "kind", "said"),
    [
        (remove, "model-missing", "target.gguf"),
        (exchange, "model-changed", "draft.gguf"),
        (fill_memory, "too-little-memory", "GiB"),
        (ask_too_much, "bad-request", "raise context_tokens"),
        (name_no_such_category, "bad-request", "no category 'poems'"),
    ],
)
def test_what_can_not_work_fails_at_once_with_its_kind(
    small_farm: SmallFarm,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[SmallFarm, pytest.MonkeyPatch], None],
    kind: str,
    said: str,
):
    small_farm.submit(k=[2], categories=[Category.CHAT.value])
    spoil(small_farm, monkeypatch)

    found, message = fail_once(small_farm)

    assert found == kind
    assert said in (message or "")


def test_one_bad_job_does_not_stop_the_others(small_farm: SmallFarm):
    small_farm.submit(k=[2, 4], categories=TWO_CATEGORIES)
    small_farm.sql("update job set spec = json_set(spec, '$.generate_tokens', 1020) where id = 2")

    assert small_farm.executor().work_off() == 4

    assert Counter(small_farm.states()) == {JobState.DONE: 3, JobState.FAILED: 1}
    with reading(small_farm.database) as session:
        assert len(measured_samples(session)[0]) == 18
        assert len(recommendations(session)) == 2


def test_a_job_past_its_time_limit_fails_and_its_child_is_gone(small_farm: SmallFarm):
    small_farm.submit(k=[2], categories=["chat"])
    before = psutil.Process().children()

    assert small_farm.executor(job_timeout_s=0.0).work_off() == 1

    (job,) = small_farm.jobs()
    assert (job.state, job.error_kind) == (JobState.FAILED, "timeout")
    assert set(psutil.Process().children()) <= set(before)


def test_a_files_place_may_differ_from_the_submitters(small_farm: SmallFarm):
    small_farm.submit(k=[2], categories=["chat"])
    (small_farm.folder / "models" / "deep").mkdir(parents=True)
    for name in ("target.gguf", "draft.gguf"):
        (small_farm.folder / name).rename(small_farm.folder / "models" / "deep" / name)

    small_farm.executor(models_folder=small_farm.folder / "models").work_off()

    assert small_farm.states() == [JobState.DONE]


@pytest.mark.parametrize(("asked", "used"), [("null", 3), ("1", 1)])
def test_threads_left_to_the_machine_are_one_per_core(
    small_farm: SmallFarm, monkeypatch: pytest.MonkeyPatch, asked: str, used: int
):
    monkeypatch.setattr(execute, "decoding_threads", lambda: 3)
    loaded: list[int | None] = []
    load = InProcessFactory.load

    def noted(factory: InProcessFactory, spec: JobSpec, *rest: Any) -> Any:
        loaded.append(spec.settings.threads)
        one = replace(spec, settings=replace(spec.settings, threads=1))
        return load(factory, one, *rest)

    monkeypatch.setattr(InProcessFactory, "load", noted)
    small_farm.submit(k=[2], categories=["chat"])
    small_farm.sql(f"update job set spec = json_set(spec, '$.settings.threads', json('{asked}'))")

    assert small_farm.executor().work_off() == 1

    assert loaded == [used]
    assert small_farm.attempts()[0].environment_before["decode_threads"] == used
