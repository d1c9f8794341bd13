"""The in-process engine with the real child and the tiny pair."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import psutil
import pytest
from tiny_mixture import EXPERTS, write_mixture

from farm.domain.decoding import AcceptRule, Sampling, Settings, Speculation, SpeculationKind
from farm.domain.job import Arm, JobSpec, ModelRef
from farm.domain.measurement import Parity
from farm.errors import BenchmarkError
from farm.gguf.calibration import Law
from worker.engines import in_process
from worker.engines.contract import PreparedPrompt
from worker.engines.in_process import InProcessEngine, InProcessFactory
from worker.engines.registry import ENGINES

BUILD = f"llama-cpp-python=={metadata.version('llama-cpp-python')}"
DIGESTS = ("a" * 64, "b" * 64)


def soon() -> float:
    return time.monotonic() + 60.0


@pytest.fixture(scope="module")
def spec(tiny_pair: tuple[Path, Path], one_thread: Settings) -> JobSpec:
    """Return a greedy job of two prompts; the models' digests matter to no engine."""
    target, draft = (
        ModelRef(str(path), role * 64, path.stem)
        for path, role in zip(tiny_pair, "td", strict=True)
    )
    return JobSpec(
        machine="any",
        engine="in-process",
        build=BUILD,
        target=target,
        draft=draft,
        speculation=Speculation(SpeculationKind.DRAFT_SIMPLE, 2),
        sampling=Sampling(0.0, 0),
        settings=one_thread,
        category="chat",
        prompts=DIGESTS,
        generate_tokens=8,
        repeats=1,
    )


@pytest.fixture(scope="module")
def prompts(law: Law) -> list[PreparedPrompt]:
    """Return the job's prompts."""
    return [PreparedPrompt(digest, law.marker(130 + i)) for i, digest in enumerate(DIGESTS)]


@pytest.fixture(scope="module")
def engine(
    spec: JobSpec, tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InProcessEngine]:
    """Return an engine with the tiny pair loaded."""
    log = tmp_path_factory.mktemp("engine") / "child.log"
    loaded = InProcessFactory().load(spec, *tiny_pair, log, soon())
    yield loaded
    loaded.end()


def children() -> set[int]:
    """Return the pids of this process's living children."""
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
    }


def test_a_job_yields_a_sample_per_prompt_and_arm(
    engine: InProcessEngine, spec: JobSpec, prompts: list[PreparedPrompt], law: Law
):
    samples = [sample for sample in engine.run(spec, prompts, soon()) if sample is not None]

    assert [(sample.prompt_digest, sample.arm) for sample in samples] == [
        (DIGESTS[0], Arm.BASELINE),
        (DIGESTS[0], Arm.SPECULATIVE),
        (DIGESTS[1], Arm.SPECULATIVE),
        (DIGESTS[1], Arm.BASELINE),
    ]
    for sample in samples:
        start = 130 + DIGESTS.index(sample.prompt_digest)
        assert sample.output_ids == law.greedy_walk(start, 8)
        assert sample.generated_tokens == 8
        speculative = sample.arm is Arm.SPECULATIVE
        assert sample.parity is (Parity.EXACT if speculative else Parity.NOT_COMPARED)
        assert sample.rounds == (law.greedy_rounds(start, 8, 2).target_passes if speculative else 0)
        assert sample.decode_tok_s is not None
        assert hash(sample)


def test_one_child_serves_jobs_of_other_sampling_and_speculation(
    engine: InProcessEngine, spec: JobSpec, prompts: list[PreparedPrompt]
):
    before = children()
    others = [
        replace(spec, sampling=Sampling(0.8, 3)),
        replace(spec, speculation=Speculation(SpeculationKind.PROMPT_LOOKUP, 5)),
        replace(
            spec,
            sampling=Sampling(1.0, 1),
            speculation=Speculation(SpeculationKind.DRAFT_SIMPLE, 4, 1, 0.6, AcceptRule.MATCH),
        ),
    ]

    for other in others:
        samples = [sample for sample in engine.run(other, prompts, soon()) if sample is not None]
        assert len(samples) == 4
        greedy = other.sampling.temperature == 0
        compared = {sample.parity for sample in samples if sample.arm is Arm.SPECULATIVE}
        assert compared == {Parity.EXACT if greedy else Parity.NOT_COMPARED}
    assert children() == before


def test_a_refused_job_raises_its_kind_and_leaves_the_engine_usable(
    engine: InProcessEngine, spec: JobSpec, prompts: list[PreparedPrompt]
):
    too_long = [PreparedPrompt(DIGESTS[0], "x" * 5000)]

    with pytest.raises(BenchmarkError, match="raise context_tokens") as caught:
        list(engine.run(spec, too_long, soon()))

    assert caught.value.kind == "bad-request"
    assert len(list(filter(None, engine.run(spec, prompts, soon())))) == 4


def test_the_build_is_described(engine: InProcessEngine):
    assert engine.build.name == BUILD
    assert len(engine.build.digest) == 64


def test_the_log_is_llama_cpps_own(engine: InProcessEngine):
    assert "llama" in engine.log_tail()


def test_a_silent_child_yields_nothing_now_and_then(
    engine: InProcessEngine,
    spec: JobSpec,
    prompts: list[PreparedPrompt],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(in_process, "LISTEN_S", 0.0)

    messages = list(engine.run(spec, prompts, soon()))

    assert len(list(filter(None, messages))) == 4
    assert None in messages


@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_truncated_file_fails_to_load_with_the_log_and_leaves_no_child(
    spec: JobSpec, tiny_pair: tuple[Path, Path], tmp_path: Path, role: str
):
    before = children()
    paths = dict(zip(("target", "draft"), tiny_pair, strict=True))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(paths[role].read_bytes()[:-100_000])

    with pytest.raises(BenchmarkError, match=r"cut\.gguf") as caught:
        InProcessFactory().load(
            spec,
            cut if role == "target" else paths["target"],
            cut if role == "draft" else paths["draft"],
            tmp_path / "child.log",
            soon(),
        )

    assert caught.value.kind == "load-failed"
    assert "not within the file bounds" in (caught.value.log_tail or "")
    assert children() == before


def test_settings_that_break_the_child_are_a_crash_with_the_traceback(
    spec: JobSpec, tiny_pair: tuple[Path, Path], tmp_path: Path
):
    odd = replace(spec, settings=replace(spec.settings, cache_type_k="f7"))

    with pytest.raises(BenchmarkError, match="exit status 1") as caught:
        InProcessFactory().load(odd, *tiny_pair, tmp_path / "child.log", soon())

    assert caught.value.kind == "crashed"
    assert "KeyError: 'f7'" in (caught.value.log_tail or "")


def test_a_load_that_fails_in_the_farm_itself_ends_the_child(
    spec: JobSpec, tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = children()

    def unreadable(*_: object) -> dict[str, int]:
        assert children() > before
        raise OSError("the target is on a drive that was pulled")

    monkeypatch.setattr(in_process, "overrides", unreadable)
    with pytest.raises(OSError, match="was pulled"):
        InProcessFactory().load(spec, *tiny_pair, tmp_path / "child.log", soon())

    assert children() == before


def test_loading_past_the_deadline_is_a_timeout_and_ends_the_child(
    spec: JobSpec, tiny_pair: tuple[Path, Path], tmp_path: Path
):
    before = children()

    with pytest.raises(BenchmarkError, match="time limit") as caught:
        InProcessFactory().load(spec, *tiny_pair, tmp_path / "child.log", time.monotonic() - 1)

    assert caught.value.kind == "timeout"
    assert children() == before


def test_running_past_the_deadline_is_a_timeout_and_ends_the_child(
    spec: JobSpec, prompts: list[PreparedPrompt], tiny_pair: tuple[Path, Path], tmp_path: Path
):
    before = children()
    engine = InProcessFactory().load(spec, *tiny_pair, tmp_path / "child.log", soon())
    assert len(children() - before) == 1
    long_job = replace(spec, generate_tokens=1000, repeats=100)

    with pytest.raises(BenchmarkError) as caught:
        list(engine.run(long_job, prompts, time.monotonic() + 0.3))

    assert caught.value.kind == "timeout"
    assert children() == before
    engine.end()


def test_a_child_that_was_killed_between_jobs_fails_the_next_one(
    spec: JobSpec, prompts: list[PreparedPrompt], tiny_pair: tuple[Path, Path], tmp_path: Path
):
    before = children()
    engine = InProcessFactory().load(spec, *tiny_pair, tmp_path / "child.log", soon())
    (pid,) = children() - before
    psutil.Process(pid).kill()

    with pytest.raises(BenchmarkError) as caught:
        list(engine.run(spec, prompts, soon()))

    assert caught.value.kind == "out-of-memory"
    engine.end()
    engine.end()


def test_the_factory_offers_the_installed_build():
    assert InProcessFactory().builds() == (BUILD,)
    assert ENGINES["in-process"].name == "in-process"


def test_without_llama_cpp_python_the_factory_offers_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(in_process, "DISTRIBUTION", "no-such-distribution-anywhere")

    assert InProcessFactory().builds() == ()


def test_the_settings_of_a_job_reach_llama_cpp(
    spec: JobSpec, prompts: list[PreparedPrompt], law: Law, tmp_path: Path
):
    mixture = write_mixture(tmp_path / "mixture.gguf", law)
    settings = replace(
        spec.settings,
        cache_type_k="q8_0",
        draft_cache_type_k="f16",
        draft_cache_type_v="q4_0",
        draft_device="none",
        numa="distribute" if sys.platform == "linux" else "off",
        experts_used=EXPERTS,
    )
    # Above temperature 0 nothing is loaded beside it, to hold its lossy settings against.
    job = replace(spec, settings=settings, sampling=Sampling(1.0, 0))
    log = tmp_path / "child.log"
    assert spec.draft is not None
    engine = InProcessFactory().load(job, mixture, Path(spec.draft.path), log, soon())
    try:
        list(engine.run(job, prompts, soon()))
    finally:
        engine.end()

    said = log.read_text()
    assert re.findall(r"n_expert_used += (\d+)", said) == [str(EXPERTS), "0"]
    assert re.findall(r"K \((\w+)\).*V \((\w+)\)", said) == [("q8_0", "f16"), ("f16", "q4_0")]
