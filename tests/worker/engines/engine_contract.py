"""What every engine promises the worker, as tests that each engine's class inherits."""

from __future__ import annotations

import os
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from gguf import GGUFReader
from tiny_mixture import EXPERTS, USED, write_mixture

from farm.domain.decoding import AcceptRule, Sampling, Settings, Speculation, SpeculationKind
from farm.domain.job import Arm, JobSpec, ModelRef
from farm.domain.measurement import Parity, Sample
from farm.errors import BenchmarkError
from farm.gguf.calibration import Law, calibration_prompt, start_state
from farm.science.parity import first_divergence
from worker import isolation
from worker.engines.contract import Engine, EngineFactory, PreparedPrompt
from worker.engines.llama_server import LlamaServerEngine

LIMIT_S = 120.0
TOKENS = 24
K = 4
CATEGORY = "code-completion"
TEXTS = ("one", "two", "three")

Load = Callable[[JobSpec], LlamaServerEngine]


def soon() -> float:
    return time.monotonic() + LIMIT_S


def descendants() -> list[psutil.Process]:
    """Return the running processes that this one started, directly or not."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def servers() -> list[psutil.Process]:
    """Return the llama-servers among them."""
    return [process for process in descendants() if process.name() == "llama-server"]


def measured(
    engine: Engine, spec: JobSpec, prompts: list[PreparedPrompt], deadline: float | None = None
) -> list[Sample]:
    run = engine.run(spec, prompts, deadline or soon())
    return [sample for sample in run if sample is not None]


def of_arm(samples: list[Sample], arm: Arm) -> list[Sample]:
    return [sample for sample in samples if sample.arm is arm]


def expect_the_law(samples: list[Sample], law: Law, n_max: int, counts_rounds: bool) -> None:
    """Check what the law fixes: ids, drafted, accepted, target passes. Equal, not just close."""
    for index, text in enumerate(TEXTS):
        start = start_state(law, CATEGORY, text, index)
        expected = law.greedy_rounds(start, TOKENS, n_max)
        walk = law.greedy_walk(start, TOKENS)
        plain, drafted = (
            next(s for s in of_arm(samples, arm) if s.prompt_digest == text) for arm in Arm
        )
        assert plain.output_ids == drafted.output_ids == walk
        assert (drafted.drafted, drafted.accepted) == (expected.drafted, expected.accepted)
        if counts_rounds:
            assert drafted.rounds == expected.target_passes
            assert drafted.accepted_per_position == expected.accepted_per_position
        else:
            assert drafted.rounds is drafted.accepted_per_position is None
        assert drafted.parity is Parity.EXACT
        assert (plain.drafted, plain.accepted, plain.rounds) == (0, 0, 0)


class EngineContract(ABC):
    """Inherit it, name the factory, and say in the fixture `build` with what to decode."""

    factory: EngineFactory
    # Servers count rounds for all their requests together.
    counts_rounds = True

    @pytest.fixture
    def prompts(self, law: Law) -> list[PreparedPrompt]:
        return [
            PreparedPrompt(text, calibration_prompt(law, CATEGORY, text, index))
            for index, text in enumerate(TEXTS)
        ]

    @pytest.fixture
    def spec(self, tiny_pair: tuple[Path, Path], one_thread: Settings, build: str) -> JobSpec:
        target, draft = (ModelRef(str(path), path.name, path.stem) for path in tiny_pair)
        return JobSpec(
            machine="any",
            engine=self.factory.name,
            build=build,
            target=target,
            draft=draft,
            speculation=Speculation(SpeculationKind.DRAFT_SIMPLE, K),
            sampling=Sampling(0.0, 0),
            settings=one_thread,
            category=CATEGORY,
            prompts=TEXTS,
            generate_tokens=TOKENS,
            repeats=1,
        )

    @pytest.fixture
    def load(self, tmp_path: Path) -> Iterator[Callable[..., Engine]]:
        """Return a loader; what it loaded is ended, and nothing may be left running."""
        before = {process.pid for process in descendants()}
        engines: list[Engine] = []

        def load(spec: JobSpec, **changes: Any) -> Engine:
            job = replace(spec, **changes)
            target = Path(job.target.path)
            draft = Path(job.draft.path) if job.draft else None
            engine = self.factory.load(job, target, draft, tmp_path / "job-1-1.log", soon())
            engines.append(engine)
            return engine

        yield load
        for engine in engines:
            engine.end()
            engine.end()
        assert {process.pid for process in descendants()} <= before

    def test_each_prompt_runs_once_on_each_arm(
        self, load: Callable[..., Engine], spec: JobSpec, prompts: list[PreparedPrompt]
    ) -> None:
        twice = replace(spec, repeats=2)
        samples = measured(load(spec), twice, prompts)
        runs = [(sample.prompt_digest, sample.repeat, sample.arm) for sample in samples]
        assert sorted(runs) == sorted(
            (text, repeat, arm) for text in TEXTS for repeat in (0, 1) for arm in Arm
        )

    def test_greedy_runs_do_what_the_pairs_law_says(
        self, load: Callable[..., Engine], spec: JobSpec, prompts: list[PreparedPrompt], law: Law
    ) -> None:
        expect_the_law(measured(load(spec), spec, prompts), law, K, self.counts_rounds)

    def test_decode_time_leaves_the_first_token_to_the_prompt(
        self, load: Callable[..., Engine], spec: JobSpec, prompts: list[PreparedPrompt]
    ) -> None:
        """Two tokens are one decode step, so they take about as long as any other step."""
        engine = load(spec)
        long = of_arm(measured(engine, replace(spec, generate_tokens=200), prompts), Arm.BASELINE)
        short = of_arm(measured(engine, replace(spec, generate_tokens=2), prompts), Arm.BASELINE)
        step_ms = min(sample.decode_ms for sample in long) / 199
        assert min(sample.decode_ms for sample in short) < 30 * step_ms
        for sample in long:
            assert sample.decode_tok_s == pytest.approx(199 / sample.decode_ms * 1000)
            assert sample.prompt_tokens > 0
            assert sample.prompt_ms > 0

    def test_another_temperature_runs_on_the_same_load(
        self, load: Callable[..., Engine], spec: JobSpec, prompts: list[PreparedPrompt]
    ) -> None:
        engine = load(spec)
        greedy = measured(engine, spec, prompts)
        rule = replace(spec.speculation, accept=AcceptRule.MATCH)
        drawn = measured(
            engine, replace(spec, speculation=rule, sampling=Sampling(0.8, 3)), prompts
        )
        assert all(sample.parity is Parity.NOT_COMPARED for sample in drawn)
        speculative = of_arm(drawn, Arm.SPECULATIVE)
        assert all(0 <= sample.accepted <= sample.drafted for sample in speculative)
        plain = [sample.output_ids for sample in of_arm(greedy, Arm.BASELINE)]
        assert plain != [sample.output_ids for sample in of_arm(drawn, Arm.BASELINE)]

    def test_a_prompt_that_does_not_fit_is_refused(
        self, load: Callable[..., Engine], spec: JobSpec, law: Law
    ) -> None:
        marker = law.marker(law.states(CATEGORY)[0])
        engine = load(spec)
        with pytest.raises(BenchmarkError, match=r"context") as caught:
            measured(engine, spec, [PreparedPrompt("long", marker * 3000)])
        assert caught.value.kind == "bad-request"

    def test_the_deadline_ends_the_run_and_the_process(
        self, load: Callable[..., Engine], spec: JobSpec, prompts: list[PreparedPrompt]
    ) -> None:
        engine = load(spec)
        long = replace(spec, generate_tokens=1500, repeats=100)
        with pytest.raises(BenchmarkError) as caught:
            measured(engine, long, prompts, time.monotonic() + 1.5)
        assert caught.value.kind == "timeout"


class LoadingEngineContract(EngineContract):
    """What an engine promises beside, that loads the pair itself and starts what decodes it."""

    @abstractmethod
    def victim(self) -> psutil.Process:
        """Return the process that decodes the speculative arm."""

    def test_another_k_does_what_the_law_says(
        self, load: Callable[..., Engine], spec: JobSpec, prompts: list[PreparedPrompt], law: Law
    ) -> None:
        job = replace(spec, speculation=replace(spec.speculation, n_max=2))
        expect_the_law(measured(load(job), job, prompts), law, 2, self.counts_rounds)

    def test_another_k_and_temperature_run_on_the_same_load(
        self, load: Callable[..., Engine], spec: JobSpec, prompts: list[PreparedPrompt]
    ) -> None:
        engine = load(spec)
        greedy = measured(engine, spec, prompts)
        rule = replace(spec.speculation, n_max=2, accept=AcceptRule.MATCH)
        warm = replace(spec, speculation=rule, sampling=Sampling(0.8, 3))
        assert warm.pair_key == spec.pair_key
        drawn = measured(engine, warm, prompts)
        assert all(sample.parity is Parity.NOT_COMPARED for sample in drawn)
        speculative = of_arm(drawn, Arm.SPECULATIVE)
        assert all(0 <= sample.accepted <= sample.drafted for sample in speculative)
        assert all(len(sample.accepted_per_position or ()) <= 2 for sample in speculative)
        plain = [sample.output_ids for sample in of_arm(greedy, Arm.BASELINE)]
        assert plain != [sample.output_ids for sample in of_arm(drawn, Arm.BASELINE)]

    @pytest.mark.parametrize("depth_tokens", [300, 700])
    def test_at_a_depth_the_law_is_the_same_and_the_prompt_is_longer(
        self,
        load: Callable[..., Engine],
        spec: JobSpec,
        prompts: list[PreparedPrompt],
        law: Law,
        depth_tokens: int,
    ) -> None:
        """A pair's law asks for the last token alone. The filler, of 400 tokens, starts over."""
        plain = of_arm(measured(load(spec), spec, prompts), Arm.BASELINE)
        deep = replace(spec, settings=replace(spec.settings, depth_tokens=depth_tokens))
        filled = [replace(prompt, depth_text="0123456789" * 40) for prompt in prompts]
        samples = measured(load(deep), deep, filled)
        for index, (before, text) in enumerate(zip(plain, TEXTS, strict=True)):
            start = start_state(law, CATEGORY, text, index)
            expected = law.greedy_rounds(start, TOKENS, spec.speculation.n_max)
            for sample in (s for s in samples if s.prompt_digest == text):
                assert sample.prompt_tokens == depth_tokens + before.prompt_tokens
                assert sample.output_ids == law.greedy_walk(start, TOKENS)
                if sample.arm is Arm.SPECULATIVE:
                    counts = (sample.drafted, sample.accepted, sample.rounds)
                    rounds = expected.target_passes if self.counts_rounds else None
                    assert counts == (expected.drafted, expected.accepted, rounds)
                    assert sample.parity is Parity.EXACT

    def test_another_number_of_experts_says_other_things(
        self,
        load: Callable[..., Engine],
        spec: JobSpec,
        prompts: list[PreparedPrompt],
        law: Law,
        tmp_path: Path,
    ) -> None:
        path = write_mixture(tmp_path / "mixture.gguf", law)
        # Alone: beside neighbours rounding turns a random model's near ties now and then.
        alone = replace(spec.settings, concurrent_requests=1)
        mixture = replace(spec, target=ModelRef(str(path), "mixture", "mixture"))
        said = {}
        for experts in (None, 1, USED, EXPERTS):
            job = replace(mixture, settings=replace(alone, experts_used=experts))
            samples = of_arm(measured(load(job), job, prompts), Arm.BASELINE)
            said[experts] = [sample.output_ids for sample in samples]
            for own, sample in zip(said[None], samples, strict=True):
                # Held against the model's own number, in words that it says itself.
                assert (sample.parity is Parity.NOT_COMPARED) == (experts is None)
                assert sample.first_divergence == first_divergence(own, sample.output_ids)
        assert said[None] == said[USED]
        for index in range(len(prompts)):
            assert len({said[experts][index] for experts in (1, USED, EXPERTS)}) == 3

    @pytest.mark.parametrize(
        "changes",
        [
            {"numa": "distribute"},
            {"batch_threads": 2},
            {"draft_cache_type_k": "q8_0", "draft_cache_type_v": "q4_0"},
            {"draft_device": "none"},
        ],
        ids=lambda changes: "-".join(changes),
    )
    def test_what_only_costs_or_saves_time_leaves_the_law_alone(
        self,
        load: Callable[..., Engine],
        spec: JobSpec,
        prompts: list[PreparedPrompt],
        law: Law,
        changes: dict[str, Any],
    ) -> None:
        job = replace(spec, settings=replace(spec.settings, **changes))
        for sample in measured(load(job), job, prompts[:1]):
            start = start_state(law, CATEGORY, TEXTS[0], 0)
            assert sample.output_ids == law.greedy_walk(start, TOKENS)

    def test_a_device_that_is_not_here_is_named_with_those_that_are(
        self, load: Callable[..., Engine], spec: JobSpec
    ) -> None:
        with pytest.raises(BenchmarkError, match=r"no device CUDA7 .*there is .*none") as caught:
            load(spec, settings=replace(spec.settings, draft_device="CUDA7"))
        assert caught.value.kind == "unsupported"

    def test_the_models_decode_confined(
        self, load: Callable[..., Engine], spec: JobSpec, tmp_path: Path
    ) -> None:
        """By links as well: the kernel's rules are about the files that these lead to."""
        assert spec.draft is not None
        links = []
        for model in (spec.target, spec.draft):
            link = tmp_path / "links" / Path(model.path).name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(model.path)
            links.append(replace(model, path=str(link)))
        engine = load(spec, target=links[0], draft=links[1])
        assert engine.isolation == isolation.describe()
        filtered = "seccomp" in engine.isolation and not engine.isolation.startswith("none")
        status = Path(f"/proc/{self.victim().pid}/status")
        if status.exists():
            assert (f"Seccomp:\t{2 if filtered else 0}\n") in status.read_text()

    def test_a_model_that_does_not_load_is_the_jobs_failure(
        self, load: Callable[..., Engine], spec: JobSpec, tmp_path: Path
    ) -> None:
        """llama.cpp knows no tokenizer of that name; the header alone shows nothing amiss."""
        broken = Path(shutil.copy(spec.target.path, tmp_path / "broken.gguf"))
        field = GGUFReader(broken, "r+").fields["tokenizer.ggml.model"]
        field.parts[field.data[0]][:] = ord("x")
        with pytest.raises(BenchmarkError) as caught:
            load(spec, target=ModelRef(str(broken), "x", "broken"))
        assert caught.value.kind == "load-failed"
        assert caught.value.log_tail

    def test_a_crash_in_the_middle_is_named_and_has_its_log(
        self, load: Callable[..., Engine], spec: JobSpec, prompts: list[PreparedPrompt]
    ) -> None:
        engine = load(spec)
        run = engine.run(replace(spec, repeats=1000), prompts, soon())
        first = next(sample for sample in run if sample is not None)
        assert first.generated_tokens == TOKENS
        os.kill(self.victim().pid, signal.SIGSEGV)
        with pytest.raises(BenchmarkError, match="SIGSEGV") as caught:
            for _ in run:
                pass
        assert caught.value.kind == "crashed"
        assert caught.value.log_tail or engine.log_tail()

    def test_a_kill_by_the_system_reads_as_out_of_memory(
        self, load: Callable[..., Engine], spec: JobSpec, prompts: list[PreparedPrompt]
    ) -> None:
        run = load(spec).run(replace(spec, repeats=1000), prompts, soon())
        next(sample for sample in run if sample is not None)
        os.kill(self.victim().pid, signal.SIGKILL)
        with pytest.raises(BenchmarkError) as caught:
            for _ in run:
                pass
        assert caught.value.kind == "out-of-memory"
