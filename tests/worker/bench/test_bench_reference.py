"""A lossy baseline is held against what the unmodified target says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farm.gguf.calibration import Law
from farm.science.parity import first_divergence
from worker.bench import reference
from worker.bench.decode import baseline
from worker.bench.failure import Failure
from worker.bench.job import Pair
from worker.bench.llama import Model
from worker.bench.reference import References
from worker.bench.sampling import Greedy

PROMPTS = 8
TOKENS = 60
QUANTISED = {"cache_type_k": "q4_0", "cache_type_v": "q4_0"}
UNMODIFIED = {"cache_type_k": "f16", "cache_type_v": "f16"}


def job_of(law: Law, unmodified: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    speculation = {"kind": "draft-simple", "n_max": 3, "n_min": 0, "p_min": 0.0, "accept": "exact"}
    return {
        "prompts": [
            {"digest": f"{number:064x}", "text": f"prompt {number} {law.marker(130 + number)}"}
            for number in range(PROMPTS)
        ],
        "speculation": speculation,
        "temperature": 0.0,
        "seed": 0,
        "generate_tokens": TOKENS,
        "repeats": 1,
        "unmodified": unmodified,
    } | changes


def of_arm(samples: list[dict[str, Any]], arm: str) -> list[dict[str, Any]]:
    return [sample for sample in samples if sample["arm"] == arm]


@pytest.fixture(scope="module")
def lossy(
    backend: None, entangled_pair: tuple[Path, Path], one_thread_payload: dict[str, Any]
) -> Pair:
    """Return a pair whose text depends on its cache, with a cache of 4 bits."""
    return Pair(*map(str, entangled_pair), one_thread_payload | QUANTISED)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Note every prompt that a reference is decoded for."""
    prompts: list[list[int]] = []
    honest = reference._decoded

    def noted(context: Any, prompt: list[int], *rest: Any) -> Any:
        prompts.append(prompt)
        return honest(context, prompt, *rest)

    monkeypatch.setattr(reference, "_decoded", noted)
    return prompts


def test_the_finding_is_that_of_a_direct_comparison(lossy: Pair, entangled: Any, law: Law):
    job = job_of(law, UNMODIFIED)
    samples = list(lossy.run(job))

    parted = 0
    for prompt, sample in zip(job["prompts"], of_arm(samples, "baseline"), strict=True):
        tokens = entangled.target_model.tokenize(prompt["text"])
        own = baseline(entangled.target, Greedy(), tokens, TOKENS, lambda _: False).output_ids
        position = first_divergence(own, sample["output_ids"])
        assert sample["compared"] is True
        assert sample["first_divergence"] == position
        if position is None:
            assert sample["margin_logits"] is None
            continue
        parted += 1
        entangled.target.clear()
        logits = entangled.target.prefill(tokens)
        for token in own[:position]:
            logits = entangled.target.decode((token,))[0]
        second, first = np.sort(logits)[-2:]
        assert sample["margin_logits"] == pytest.approx(float(first - second), abs=1e-4)
    assert parted > PROMPTS / 2


def test_the_speculative_arm_stays_against_the_baseline_of_its_own_settings(lossy: Pair, law: Law):
    samples = list(lossy.run(job_of(law, UNMODIFIED)))

    arms = (of_arm(samples, arm) for arm in ("baseline", "speculative"))
    for plain, drafted in zip(*arms, strict=True):
        own = first_divergence(plain["output_ids"], drafted["output_ids"])
        assert (drafted["compared"], drafted["first_divergence"]) == (True, own)


def test_a_text_is_decoded_once_for_all_jobs_of_a_load(
    backend: None,
    entangled_pair: tuple[Path, Path],
    law: Law,
    one_thread_payload: dict[str, Any],
    decoded: list[list[int]],
):
    pair = Pair(*map(str, entangled_pair), one_thread_payload | QUANTISED)
    job = job_of(law, UNMODIFIED, repeats=2)
    findings = [[sample["first_divergence"] for sample in of_arm(list(pair.run(job)), "baseline")]]
    other_k = job | {"speculation": job["speculation"] | {"n_max": 6}, "repeats": 1}
    findings.append(
        [sample["first_divergence"] for sample in of_arm(list(pair.run(other_k)), "baseline")]
    )
    assert len(decoded) == PROMPTS
    assert findings[0] == findings[1] * 2

    list(pair.run(job | {"generate_tokens": 5, "repeats": 1}))
    assert len(decoded) == 2 * PROMPTS


def test_no_cache_of_the_arms_lies_beside_the_references(
    lossy: Pair, law: Law, monkeypatch: pytest.MonkeyPatch
):
    beside: list[int] = []
    honest = References.prepare

    def noted(self: References, *args: Any) -> None:
        beside.append(len(lossy._contexts))
        honest(self, *args)

    monkeypatch.setattr(References, "prepare", noted)
    list(lossy.run(job_of(law, None)))
    assert len(lossy._contexts) == 2

    samples = list(lossy.run(job_of(law, UNMODIFIED, generate_tokens=TOKENS + 1)))

    assert beside == [0]
    assert {sample["compared"] for sample in samples} == {True}


@pytest.mark.parametrize("changes", [{"temperature": 1.0}, {}])
def test_nothing_is_compared_that_was_not_asked_for(
    lossy: Pair, law: Law, decoded: list[list[int]], changes: dict[str, Any]
):
    samples = list(lossy.run(job_of(law, None, **changes)))

    assert decoded == []
    assert {sample["compared"] for sample in of_arm(samples, "baseline")} == {False}


def test_without_memory_for_it_the_job_is_measured_without_a_reference(
    backend: None,
    entangled_pair: tuple[Path, Path],
    law: Law,
    one_thread_payload: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    pair = Pair(*map(str, entangled_pair), one_thread_payload | QUANTISED)
    honest = Model.context
    tried: list[int] = []

    def no_room(self: Model, settings: dict[str, Any]) -> Any:
        if settings["context_tokens"] != one_thread_payload["context_tokens"]:
            tried.append(settings["context_tokens"])
            raise Failure("load-failed", "llama.cpp could not make a context.")
        return honest(self, settings)

    monkeypatch.setattr(Model, "context", no_room)
    samples = list(pair.run(job_of(law, UNMODIFIED)))

    assert {sample["compared"] for sample in of_arm(samples, "baseline")} == {False}
    assert {sample["compared"] for sample in of_arm(samples, "speculative")} == {True}
    assert "No reference of the unmodified target: llama.cpp could not" in capfd.readouterr().err

    again = list(pair.run(job_of(law, UNMODIFIED)))

    assert {sample["compared"] for sample in of_arm(again, "baseline")} == {False}
    assert len(tried) == 1


def test_an_override_of_the_experts_needs_another_load_that_is_freed(
    backend: None,
    entangled_pair: tuple[Path, Path],
    law: Law,
    one_thread_payload: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
):
    events: list[str] = []
    path = str(entangled_pair[0])
    own = Model(path, 0)

    class Noted(Model):
        def __init__(self, *args: Any) -> None:
            events.append("loaded")
            super().__init__(*args)

        def close(self) -> None:
            events.append("freed")
            super().close()

    monkeypatch.setattr(reference, "Model", Noted)
    prompt = own.tokenize(law.marker(130))
    found = {}
    for changed in ("cache_type_k", "experts_used"):
        references = References(path, own, one_thread_payload | QUANTISED | {"experts_used": 2})
        unmodified = UNMODIFIED | {changed: one_thread_payload[changed]}
        references.prepare([prompt], TOKENS, unmodified)
        found[changed] = references.text(prompt, TOKENS)

    assert events == ["loaded", "freed"]
    assert found["cache_type_k"] == found["experts_used"]
    assert found["experts_used"] is not None
    assert len(found["experts_used"].output_ids) == TOKENS
    assert len(found["experts_used"].margins_logits) == TOKENS
