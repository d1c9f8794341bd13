"""Several requests at once on a real llama-server: all the time, and nothing else recorded."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from engine_contract import CATEGORY, TEXTS, Load, measured, of_arm, soon
from test_llama_server import changed_arguments

from farm.domain.decoding import Speculation, SpeculationKind
from farm.domain.job import Arm, JobSpec
from farm.domain.measurement import Parity
from farm.errors import BenchmarkError
from farm.gguf.calibration import Law, start_state
from worker.bench.warm_up import WARM_UP_TEXT
from worker.engines.contract import PreparedPrompt
from worker.engines.server import Server

# Long enough to be seen at work.
TOKENS = 400


@pytest.fixture
def spec(spec: JobSpec) -> JobSpec:
    settings = replace(spec.settings, concurrent_requests=4)
    return replace(spec, settings=settings, generate_tokens=TOKENS)


class Ledger:
    """What was asked of each server, in order, and beside what: written down as it passes.

    neighbours[number]: the requests that were in flight on its server while it was, itself among
    them.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[Server, dict[str, Any]]] = []
        self.neighbours: dict[int, set[int]] = {}
        self._open: dict[int, Server] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._answer = Server.answer
        ledger = self

        def answer(server: Server, request: dict[str, Any]) -> dict[str, Any]:
            return ledger._passed(server, request)

        monkeypatch.setattr(Server, "answer", answer)

    def _passed(self, server: Server, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            number = next(self._numbers)
            self.asked.append((server, request))
            self._open[number] = server
            others = [other for other, at in self._open.items() if at is server]
            for other in others:
                self.neighbours.setdefault(other, set()).update(others)
        try:
            return self._answer(server, request)
        finally:
            with self._lock:
                del self._open[number]


class TestConstantLoad:
    @pytest.mark.parametrize("at_once", [2, 4])
    def test_every_slot_has_the_context_and_all_work_at_once(
        self, load: Load, spec: JobSpec, prompts: list[PreparedPrompt], at_once: int
    ) -> None:
        """By the server's own word: /slots, looked at while it works."""
        job = replace(spec, settings=replace(spec.settings, concurrent_requests=at_once))
        engine = load(job)
        seen: Counter[int] = Counter()
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.01):
                for server in list(engine._servers.values()):
                    seen[sum(server.busy())] += 1

        watcher = threading.Thread(target=watch)
        watcher.start()
        samples = measured(engine, job, prompts)
        over.set()
        watcher.join()
        assert len(samples) == 2 * len(prompts)
        assert max(seen) == at_once
        for server in engine._servers.values():
            _, body = server._probe("/props")
            assert f'"total_slots":{at_once}' in body
            assert f'"n_ctx":{job.settings.context_tokens}' in body
            assert not any(server.busy())

    def test_only_what_the_job_asks_for_is_recorded(
        self,
        load: Load,
        spec: JobSpec,
        prompts: list[PreparedPrompt],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Fill-ins take part in the load, on both servers, and leave no sample."""
        ledger = Ledger(monkeypatch)
        job = replace(spec, generate_tokens=48, repeats=2)
        samples = measured(load(job), job, prompts)
        runs = [(sample.prompt_digest, sample.repeat, sample.arm) for sample in samples]
        assert sorted(runs) == sorted(
            (text, repeat, arm) for text in TEXTS for repeat in (0, 1) for arm in Arm
        )
        # Fill-ins are numbered from 0; a recorded run's seed is a digest.
        recorded = [n for n, (_, request) in enumerate(ledger.asked) if request["seed"] > 1000]
        assert len(recorded) == len(samples) < len(ledger.asked)
        # Of four slots and one request that waits; no block has as many recorded runs.
        assert all(len(ledger.neighbours[number]) >= 4 + 1 for number in recorded)

    def test_nothing_is_asked_twice_of_a_kind_that_remembers(
        self,
        load: Load,
        spec: JobSpec,
        prompts: list[PreparedPrompt],
        law: Law,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        ledger = Ledger(monkeypatch)
        mod = replace(
            spec,
            draft=None,
            speculation=Speculation(SpeculationKind.NGRAM_MOD, 4),
            generate_tokens=160,
            repeats=2,
        )
        samples = measured(load(mod), mod, prompts)
        lives: dict[Server, list[str]] = {}
        for server, request in ledger.asked:
            if server._speculates:
                lives.setdefault(server, []).append(request["prompt"])
        assert len(lives) == 2
        texts = {prompt.text for prompt in prompts}
        for asked in lives.values():
            assert len(asked) == len(set(asked))
            assert texts < set(asked)
            assert all(WARM_UP_TEXT in text for text in set(asked) - texts)
        for index, text in enumerate(TEXTS):
            walk = law.greedy_walk(start_state(law, CATEGORY, text, index), 160)
            runs = [sample for sample in samples if sample.prompt_digest == text]
            assert {sample.output_ids for sample in runs} == {walk}

    def test_at_a_depth_the_filler_is_tokenised_once_and_no_fill_in_is_kept(
        self,
        load: Load,
        spec: JobSpec,
        prompts: list[PreparedPrompt],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        tokenised: list[str] = []
        honest = Server.tokenize

        def noted(self: Server, text: str, *, bare: bool) -> list[int]:
            tokenised.append(text)
            return honest(self, text, bare=bare)

        monkeypatch.setattr(Server, "tokenize", noted)
        settings = replace(spec.settings, depth_tokens=96, concurrent_requests=2)
        deep = replace(
            spec,
            draft=None,
            speculation=Speculation(SpeculationKind.NGRAM_MOD, 4),
            settings=settings,
            generate_tokens=24,
        )
        filled = [replace(prompt, depth_text="0123456789") for prompt in prompts]
        engine = load(deep)
        assert len(measured(engine, deep, filled)) == 2 * len(filled)
        assert any(WARM_UP_TEXT in text for text in tokenised)
        assert tokenised.count("0123456789") == 1
        assert set(engine._at_depth) == set(filled)

    def test_a_job_given_up_leaves_nobody_asking(
        self, load: Load, spec: JobSpec, prompts: list[PreparedPrompt]
    ) -> None:
        """A lost lease closes the run; its users end with the engine."""
        engine = load(spec)
        before = set(threading.enumerate())
        run = engine.run(replace(spec, generate_tokens=1500, repeats=100), prompts, soon())
        assert next(run) is None
        users = set(threading.enumerate()) - before
        assert len(users) == 4 + 1
        run.close()
        engine.end()
        for user in users:
            user.join(30)
        assert not any(user.is_alive() for user in users)

    def test_a_server_with_another_number_of_slots_is_not_measured(
        self, load: Load, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        changed_arguments(monkeypatch, lambda said: [*said, "-np", "2"])
        with pytest.raises(BenchmarkError, match="on 2 requests at once, not on 4") as caught:
            load(spec)
        assert caught.value.kind == "unsupported"


class TestParity:
    def test_a_divergence_has_the_margin_where_the_baseline_was(
        self,
        load: Load,
        spec: JobSpec,
        prompts: list[PreparedPrompt],
        law: Law,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The baseline is told its own path, when nobody else is asking."""
        ledger = Ledger(monkeypatch)
        forced = ["--spec-synth-rates", "1,1,1,1"]
        changed_arguments(monkeypatch, lambda said: [*said, *forced])
        job = replace(spec, generate_tokens=24)
        samples = measured(load(job), job, prompts)
        parted = [s for s in of_arm(samples, Arm.SPECULATIVE) if s.parity is not Parity.EXACT]
        assert parted
        for sample in parted:
            assert sample.parity is Parity.MISMATCH
            assert sample.first_divergence is not None
            index = TEXTS.index(sample.prompt_digest)
            start = start_state(law, CATEGORY, sample.prompt_digest, index)
            before = law.greedy_walk(start, 24)[sample.first_divergence - 1]
            logits = sorted(law.target_logits[law.state(before)])
            assert sample.margin_logits == pytest.approx(logits[-1] - logits[-2], abs=0.01)
        told = [n for n, (_, request) in enumerate(ledger.asked) if request["n_probs"]]
        assert len(told) == len(parted)
        assert all(ledger.neighbours[number] == {number} for number in told)
