"""The stream that every OpenAI-compatible server speaks, from real servers that run already."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from endpoint_servers import Endpoints
from engine_contract import CATEGORY, LIMIT_S, TEXTS, TOKENS, K, measured, of_arm
from typer.testing import CliRunner

from farm.cli.endpoints import app
from farm.domain.decoding import Sampling
from farm.domain.job import Arm, JobSpec
from farm.domain.measurement import Parity, Sample
from farm.endpoints import register
from farm.endpoints.register import Api, Endpoint, pair_build
from farm.errors import BenchmarkError
from farm.gguf.calibration import Law, calibration_prompt, start_state
from worker.engines.contract import PreparedPrompt
from worker.engines.endpoint import EndpointFactory

Run = Callable[[JobSpec], list[Sample]]


@pytest.fixture
def spec(endpoints: Endpoints) -> JobSpec:
    """Return a job on both servers, spoken to as if nothing more were known of them."""
    for name, url in (("plain", endpoints.plain), ("fast", endpoints.fast)):
        register.add(Endpoint(name, url, api=Api.OPENAI))
    return endpoints.job(pair_build("plain", "fast"), CATEGORY, TEXTS, TOKENS)


@pytest.fixture
def run(law: Law) -> Run:
    prompts = [
        PreparedPrompt(text, calibration_prompt(law, CATEGORY, text, index))
        for index, text in enumerate(TEXTS)
    ]

    def run(spec: JobSpec) -> list[Sample]:
        deadline = time.monotonic() + LIMIT_S
        engine = EndpointFactory().load(spec, Path(), None, Path(), deadline)
        return measured(engine, spec, prompts, deadline)

    return run


def test_a_stream_counts_what_the_pairs_law_says(run: Run, spec: JobSpec, law: Law) -> None:
    samples = run(spec)
    for index, text in enumerate(TEXTS):
        expected = law.greedy_rounds(start_state(law, CATEGORY, text, index), TOKENS, K)
        plain, fast = (
            next(one for one in of_arm(samples, arm) if one.prompt_digest == text) for arm in Arm
        )
        assert (plain.generated_tokens, fast.generated_tokens) == (TOKENS, TOKENS)
        assert (fast.drafted, fast.accepted) == (expected.drafted, expected.accepted)
        assert (fast.parity, fast.first_divergence) == (Parity.EXACT, None)
        assert plain.output_digest == fast.output_digest
        # Counters are looked at where it is known whose they are.
        assert (fast.rounds, fast.output_ids) == (None, ())


def test_texts_that_part_are_told_by_the_baselines_own_alternatives(
    run: Run, spec: JobSpec, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One character of the speculative text is changed on its way; the margin is the real one."""
    monkeypatch.setattr("worker.engines.endpoint.compare", lambda *_, **__: 5)
    fast = of_arm(run(spec), Arm.SPECULATIVE)
    assert {sample.first_divergence for sample in fast} == {5}
    assert all((sample.margin_logits or 0) > 0 for sample in fast)


def test_above_temperature_0_nothing_is_compared(run: Run, spec: JobSpec) -> None:
    samples = run(replace(spec, sampling=Sampling(0.8, 3)))
    assert {sample.parity for sample in samples} == {Parity.NOT_COMPARED}


def test_the_same_servers_known_for_what_they_are_tell_more(run: Run, endpoints: Endpoints) -> None:
    endpoints.register("plain", endpoints.plain)
    endpoints.register("fast", endpoints.fast)
    spec = endpoints.job(pair_build("plain", "fast"), CATEGORY, TEXTS, TOKENS)
    for sample in of_arm(run(spec), Arm.SPECULATIVE):
        assert sample.rounds is not None
        assert len(sample.output_ids) == TOKENS


def test_a_baseline_that_speculates_is_found_out(run: Run, spec: JobSpec) -> None:
    turned = replace(spec, build=pair_build("fast", "plain"))
    with pytest.raises(BenchmarkError, match="baseline endpoint fast speculates itself"):
        run(turned)


@pytest.mark.parametrize(("api", "ids"), [("llama-server", True), ("openai", False)])
def test_check_asks_a_real_server(endpoints: Endpoints, api: str, ids: bool) -> None:
    register.add(Endpoint("fast", endpoints.fast, api=Api(api)))
    found = json.loads(CliRunner().invoke(app, ["check", "fast", "--json"]).stdout)
    assert found["drafted"] >= found["accepted"] > 0
    assert (found["token_ids"], found["margins"]) == (ids, True)
