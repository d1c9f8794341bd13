"""llama-servers' greedy texts: the control of a divergence, and lossy baselines' reference."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_contract import LIMIT_S, Load, measured, of_arm, servers, soon
from gguf import GGUFReader

from farm.builds.arguments import arguments
from farm.domain.decoding import AcceptRule, Sampling, Settings
from farm.domain.job import Arm, JobSpec, ModelRef
from farm.domain.measurement import Parity, Sample
from farm.errors import BenchmarkError
from farm.gguf.calibration import Law
from farm.science.parity import Cause, explain, first_divergence
from worker.engines import llama_server
from worker.engines.contract import PreparedPrompt
from worker.engines.server import Server

TOKENS = 60
QUANTISED = {"cache_type_k": "q4_0", "cache_type_v": "q4_0"}


def caches() -> list[str]:
    """Return the cache type of every server that runs."""
    commands = [server.cmdline() for server in servers()]
    return [command[command.index("-ctk") + 1] for command in commands]


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the speculative server take every drafted token."""

    def forced(dialect: Any, speculation: Any, *rest: Any) -> list[str]:
        said = arguments(dialect, speculation, *rest)
        return [*said, "--spec-synth-rates", "1,1,1,1"] if speculation else said

    monkeypatch.setattr(llama_server, "arguments", forced)


def parted(samples: list[Sample]) -> list[tuple[Sample, Cause]]:
    return [
        (sample, explain(sample.output_ids[sample.first_divergence], sample.control_token))
        for sample in of_arm(samples, Arm.SPECULATIVE)
        if sample.first_divergence is not None
    ]


class TestControl:
    @pytest.mark.parametrize("depth_tokens", [0, 96])
    def test_forced_acceptance_is_no_arithmetic(
        self,
        load: Load,
        spec: JobSpec,
        prompts: list[PreparedPrompt],
        forced: None,
        depth_tokens: int,
    ) -> None:
        deep = replace(spec, settings=replace(spec.settings, depth_tokens=depth_tokens))
        filled = [replace(prompt, depth_text="0123456789") for prompt in prompts]
        samples = measured(load(deep), deep, filled)

        found = parted(samples)
        assert {cause for _, cause in found} == {Cause.UNEXPLAINED}
        plain = {sample.prompt_digest: sample for sample in of_arm(samples, Arm.BASELINE)}
        for sample, _ in found:
            assert sample.first_divergence is not None
            own = plain[sample.prompt_digest].output_ids
            # The pair's law has no near ties: scored in one pass, the baseline says the same.
            assert sample.control_token == own[sample.first_divergence]

    def test_a_server_whose_wide_passes_agree_with_the_speculative_one_is_arithmetic(
        self,
        load: Load,
        spec: JobSpec,
        prompts: list[PreparedPrompt],
        law: Law,
        forced: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A fault made for the test: scored in one pass, the target answers as its draft does."""
        honest = Server.complete

        def rounds_otherwise(self: Server, request: dict[str, Any], deadline: float) -> Any:
            answer = yield from honest(self, request, deadline)
            if isinstance(request["prompt"], list):
                state = law.state(request["prompt"][-1])
                answer["tokens"] = [int(law.draft_probabilities(state, 0.0).argmax())]
            return answer

        monkeypatch.setattr(Server, "complete", rounds_otherwise)
        samples = measured(load(spec), spec, prompts)

        assert {cause for _, cause in parted(samples)} == {Cause.ARITHMETIC}


class TestReference:
    @pytest.fixture
    def entangled(self, spec: JobSpec, tiny_pair: tuple[Path, Path], tmp_path: Path) -> JobSpec:
        """Return a job on the tiny pair with random weights: its text depends on its cache."""
        rng = np.random.default_rng(5)
        copies = [Path(shutil.copy(path, tmp_path / path.name)) for path in tiny_pair]
        for copy in copies:
            for tensor in GGUFReader(copy, "r+").tensors:
                if "attn_output" in tensor.name or "ffn_down" in tensor.name:
                    tensor.data[:] = rng.normal(0, 0.3, tensor.data.shape)
        target, draft = (ModelRef(str(path), path.name, path.stem) for path in copies)
        return replace(spec, target=target, draft=draft, generate_tokens=TOKENS)

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """Note the servers that run whenever one is asked to complete something."""
        running: list[list[str]] = []
        honest = Server.complete

        def noted(self: Server, request: dict[str, Any], deadline: float) -> Any:
            running.append(caches())
            return (yield from honest(self, request, deadline))

        monkeypatch.setattr(Server, "complete", noted)
        return running

    @pytest.mark.parametrize("side_by_side", [True, False])
    def test_a_lossy_baseline_is_held_against_the_unmodified_target(
        self,
        load: Load,
        entangled: JobSpec,
        prompts: list[PreparedPrompt],
        asked: list[list[str]],
        monkeypatch: pytest.MonkeyPatch,
        side_by_side: bool,
    ) -> None:
        monkeypatch.setattr(llama_server, "fits_twice", lambda *_: side_by_side)
        unmodified = load(entangled)
        plain = of_arm(measured(unmodified, entangled, prompts), Arm.BASELINE)
        unmodified.end()
        lossy = replace(entangled, settings=replace(entangled.settings, **QUANTISED), repeats=2)
        asked.clear()

        samples = measured(load(lossy), lossy, prompts)

        own = {sample.prompt_digest: sample.output_ids for sample in plain}
        assert {sample.parity for sample in plain} == {Parity.NOT_COMPARED}
        differing = 0
        for sample in of_arm(samples, Arm.BASELINE):
            position = first_divergence(own[sample.prompt_digest], sample.output_ids)
            assert sample.first_divergence == position
            assert (sample.parity is Parity.EXACT) == (position is None)
            assert (sample.margin_logits is None) == (position is None)
            differing += position is not None
        assert differing > 0
        drafted = of_arm(samples, Arm.SPECULATIVE)
        assert {sample.parity for sample in drafted} == {Parity.EXACT}
        # Alone, once per prompt, and before anything else.
        assert asked[: len(prompts)] == [["f16"]] * len(prompts)
        assert all("f16" not in types for types in asked[len(prompts) :])

    def test_another_k_on_the_same_load_needs_no_other_reference(
        self,
        load: Load,
        entangled: JobSpec,
        prompts: list[PreparedPrompt],
        asked: list[list[str]],
    ) -> None:
        lossy = replace(entangled, settings=replace(entangled.settings, **QUANTISED))
        engine = load(lossy)
        first = of_arm(measured(engine, lossy, prompts), Arm.BASELINE)
        asked.clear()

        other = replace(lossy, speculation=replace(lossy.speculation, n_max=2))
        again = of_arm(measured(engine, other, prompts), Arm.BASELINE)
        warm = replace(lossy, sampling=Sampling(0.8, 0))
        warm = replace(warm, speculation=replace(warm.speculation, accept=AcceptRule.MATCH))
        drawn = measured(engine, warm, prompts)

        assert all("f16" not in types for types in asked)
        assert [s.first_divergence for s in again] == [s.first_divergence for s in first]
        assert {sample.parity for sample in drawn} == {Parity.NOT_COMPARED}

    def test_without_room_for_it_the_job_is_measured_without_a_reference(
        self,
        load: Load,
        spec: JobSpec,
        prompts: list[PreparedPrompt],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        lossy = replace(spec, settings=replace(spec.settings, **QUANTISED))

        def without_room(
            dialect: Any, speculation: Any, settings: Settings, *rest: Any
        ) -> list[str]:
            said = arguments(dialect, speculation, settings, *rest)
            return said if settings.lossy else [*said, "--no-such-flag"]

        monkeypatch.setattr(llama_server, "arguments", without_room)
        engine = load(lossy)
        samples = measured(engine, lossy, prompts)
        measured(engine, lossy, prompts)

        assert {s.parity for s in of_arm(samples, Arm.BASELINE)} == {Parity.NOT_COMPARED}
        assert {s.parity for s in of_arm(samples, Arm.SPECULATIVE)} == {Parity.EXACT}
        assert caplog.text.count("No reference of the unmodified target") == 1

    def test_a_deadline_in_the_reference_ends_its_server(
        self, load: Load, spec: JobSpec, prompts: list[PreparedPrompt]
    ) -> None:
        settings = replace(spec.settings, **QUANTISED)
        lossy = replace(spec, settings=settings, generate_tokens=1900)
        engine = load(lossy)

        with pytest.raises(BenchmarkError) as caught:
            measured(engine, lossy, prompts, deadline=soon() - LIMIT_S + 0.3)

        assert caught.value.kind == "timeout"
        assert servers() == []
