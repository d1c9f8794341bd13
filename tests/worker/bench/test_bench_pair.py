"""One job on a loaded pair: order of the arms, what a sample holds, and what is refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farm.domain.measurement import Sample
from farm.gguf.calibration import Law
from worker.bench import job as job_module
from worker.bench.failure import Failure
from worker.bench.job import Pair
from worker.bench.llama import Model, lib
from worker.bench.sampling import Greedy, rule

TIMES = ("prompt_ms", "draft_prompt_ms", "decode_ms", "draft_ms", "verify_ms")


@pytest.fixture(scope="module")
def pair(backend: None, tiny_pair: tuple[Path, Path], one_thread_payload: dict[str, Any]) -> Pair:
    """Return the tiny pair, ready for jobs."""
    return Pair(str(tiny_pair[0]), str(tiny_pair[1]), one_thread_payload)


def job_of(law: Law, prompts: int = 2, **changes: Any) -> dict[str, Any]:
    """Return a job of chat prompts; keys of the speculation may be given like any other."""
    speculation = {"kind": "draft-simple", "n_max": 3, "n_min": 0, "p_min": 0.0, "accept": "exact"}
    job = {
        "prompts": [
            {"digest": f"{number:064x}", "text": f"prompt {number} {law.marker(130 + number)}"}
            for number in range(prompts)
        ],
        "temperature": 0.0,
        "seed": 0,
        "generate_tokens": 10,
        "repeats": 1,
    }
    within = {key: value for key, value in changes.items() if key in speculation}
    rest = {key: value for key, value in changes.items() if key not in speculation}
    return job | rest | {"speculation": speculation | within}


def outputs(samples: list[dict[str, Any]]) -> list[list[int]]:
    return [sample["output_ids"] for sample in samples]


def test_arms_come_in_mirrored_order(pair: Pair, law: Law):
    samples = list(pair.run(job_of(law, prompts=3, repeats=2, generate_tokens=3)))

    forth, back = ["baseline", "speculative"], ["speculative", "baseline"]
    assert [sample["arm"] for sample in samples] == (forth + back) * 3
    digests = [sample["prompt_digest"][-1] for sample in samples]
    assert digests == list("001122" * 2)
    assert [sample["repeat"] for sample in samples] == [0] * 6 + [1] * 6


def test_a_sample_holds_every_field_that_the_worker_does_not_add_itself(pair: Pair, law: Law):
    for sample in pair.run(job_of(law)):
        added = {"parity", "generated_tokens"}
        assert set(sample) - {"compared"} == {field.name for field in fields(Sample)} - added


def test_a_greedy_samples_values(pair: Pair, law: Law):
    job = job_of(law, prompts=1)

    plain, drafted = pair.run(job)

    assert plain["output_ids"] == drafted["output_ids"]
    assert len(plain["output_ids"]) == 10
    raw = np.asarray(plain["output_ids"], "<i4").tobytes()
    assert plain["output_digest"] == drafted["output_digest"] == hashlib.sha256(raw).hexdigest()
    # "prompt 0 " is three bytes for each space, one for each other character, then the marker.
    assert plain["prompt_tokens"] == drafted["prompt_tokens"] == 7 + 2 * 3 + 1
    assert [plain[name] for name in ("rounds", "drafted", "accepted")] == [0, 0, 0]
    assert plain["accepted_per_position"] == plain["drafted_per_position"] == []
    assert len(drafted["drafted_per_position"]) == 3
    assert 1 + drafted["rounds"] + drafted["accepted"] == 10
    assert (plain["compared"], drafted["compared"]) == (False, True)
    assert plain["first_divergence"] is None
    assert drafted["first_divergence"] is drafted["margin_logits"] is None
    assert all(drafted[name] >= 0 for name in TIMES)
    assert plain["draft_ms"] == plain["verify_ms"] == plain["draft_prompt_ms"] == 0
    assert drafted["draft_ms"] + drafted["verify_ms"] <= drafted["decode_ms"]
    assert plain["peak_rss_bytes"] > 1_000_000


def test_the_peak_is_the_childs_own_and_not_its_parents():
    ballast = np.ones(2**26)
    asked = "from worker.bench.job import peak_rss_bytes; print(peak_rss_bytes())"

    peak = int(subprocess.check_output([sys.executable, "-c", asked]))

    assert 1_000_000 < peak < ballast.nbytes


def test_sampled_outputs_repeat_with_their_seed(pair: Pair, law: Law):
    job = job_of(law, temperature=1.0, seed=7, generate_tokens=24, repeats=2)

    first = outputs(list(pair.run(job)))
    pair_was_used_for_something_else = list(pair.run(job_of(law, generate_tokens=5)))

    assert pair_was_used_for_something_else
    assert outputs(list(pair.run(job))) == first
    assert outputs(list(pair.run(job | {"seed": 8}))) != first
    # Repeats, prompts and arms each draw from a stream of their own.
    assert len({tuple(output) for output in first}) == len(first)


def test_a_sampled_pair_of_outputs_is_not_compared(pair: Pair, law: Law):
    for sample in pair.run(job_of(law, temperature=1.0)):
        assert sample["compared"] is False
        assert sample["first_divergence"] is sample["margin_logits"] is None


def test_a_divergence_is_located_with_the_baselines_margin(
    pair: Pair, law: Law, monkeypatch: pytest.MonkeyPatch
):
    honest = Greedy.verify

    def accept_all(self: Greedy, logits: Any, drafted: list[int], laws: Any) -> Any:
        verdict = honest(self, logits, drafted, laws)
        own = int(logits[len(drafted)].argmax())
        return type(verdict)(len(drafted), own)

    monkeypatch.setattr(Greedy, "verify", accept_all)
    samples = list(pair.run(job_of(law, prompts=6, n_max=4, generate_tokens=20)))

    diverged = 0
    for start in range(0, len(samples), 2):
        arms = {sample["arm"]: sample for sample in samples[start : start + 2]}
        plain, drafted = arms["baseline"], arms["speculative"]
        differing = [
            index
            for index, (left, right) in enumerate(
                zip(plain["output_ids"], drafted["output_ids"], strict=True)
            )
            if left != right
        ]
        assert plain["first_divergence"] is None
        assert drafted["first_divergence"] == (differing[0] if differing else None)
        if differing:
            diverged += 1
            assert drafted["margin_logits"] == pytest.approx(1.5)
    assert diverged > 0


def test_prompt_lookup_needs_no_draft(
    backend: None, tiny_pair: tuple[Path, Path], law: Law, one_thread_payload: dict[str, Any]
):
    alone = Pair(str(tiny_pair[0]), None, one_thread_payload)

    samples = list(alone.run(job_of(law, kind="prompt-lookup", generate_tokens=60)))

    assert samples[0]["output_ids"] == samples[1]["output_ids"]
    assert samples[1]["accepted"] > 0


def test_a_missing_draft_is_refused_by_kind(
    backend: None, tiny_pair: tuple[Path, Path], law: Law, one_thread_payload: dict[str, Any]
):
    alone = Pair(str(tiny_pair[0]), None, one_thread_payload)

    with pytest.raises(Failure, match="draft-simple needs a draft") as caught:
        list(alone.run(job_of(law)))

    assert caught.value.kind == "bad-request"


def test_a_prompt_that_does_not_fit_is_refused_by_name_before_anything_runs(pair: Pair, law: Law):
    job = job_of(law, n_max=8, generate_tokens=20)
    job["prompts"][1] |= {"digest": "abc" * 20, "text": "x" * 3000}

    with pytest.raises(Failure, match="Prompt abcabcabcabc has 3000 tokens and only 2020 fit") as (
        caught
    ):
        next(pair.run(job))

    assert caught.value.kind == "bad-request"


def test_the_longest_prompt_that_fits_runs_to_the_end(
    backend: None, tiny_pair: tuple[Path, Path], law: Law, one_thread_payload: dict[str, Any]
):
    small = Pair(*map(str, tiny_pair), one_thread_payload | {"context_tokens": 256})
    job = job_of(law, prompts=1, n_max=8, generate_tokens=20)
    room = 256 - 20 - 8
    job["prompts"][0]["text"] = "x" * (room - 1) + law.marker(131)

    assert {len(sample["output_ids"]) for sample in small.run(job)} == {20}


def test_an_empty_prompt_is_refused_by_name(pair: Pair, law: Law):
    job = job_of(law)
    job["prompts"][0]["text"] = ""

    with pytest.raises(Failure, match="Prompt 000000000000 has no tokens") as caught:
        next(pair.run(job))

    assert caught.value.kind == "bad-request"


def test_a_draft_file_that_is_not_there_is_a_failed_load(
    backend: None, tiny_pair: tuple[Path, Path], one_thread_payload: dict[str, Any]
):
    with pytest.raises(Failure, match=r"could not load gone\.gguf") as caught:
        Pair(str(tiny_pair[0]), "gone.gguf", one_thread_payload)

    assert caught.value.kind == "load-failed"


def test_a_recurrent_target_is_refused_when_loaded(
    backend: None,
    tiny_pair: tuple[Path, Path],
    one_thread_payload: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(lib, "llama_model_is_recurrent", lambda _model: True)

    with pytest.raises(Failure, match="recurrent") as caught:
        Pair(str(tiny_pair[0]), None, one_thread_payload)

    assert caught.value.kind == "unsupported"


def test_a_cache_that_can_not_be_rolled_back_is_a_failure_and_no_wrong_result(
    pair: Pair, law: Law, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lib, "llama_memory_seq_rm", lambda *_: False)

    with pytest.raises(Failure, match="rolled back") as caught:
        list(pair.run(job_of(law, generate_tokens=40)))

    assert caught.value.kind == "unsupported"


def test_a_text_that_ends_at_once_ends_both_arms(
    pair: Pair, law: Law, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Model, "ends_text", lambda _model, _token: True)

    for sample in pair.run(job_of(law)):
        assert len(sample["output_ids"]) == 1
        assert sample["rounds"] == sample["drafted"] == 0
        assert sample["first_divergence"] is None


def test_arms_drafts_and_verdicts_draw_from_streams_of_their_own(
    pair: Pair, law: Law, monkeypatch: pytest.MonkeyPatch
):
    # A draft and a verdict out of one stream would depend on each other and bend the law.
    states: list[str] = []

    def noted(temperature: float, accept: str, rng: np.random.Generator) -> Greedy:
        states.append(str(rng.bit_generator.state))
        return rule(temperature, accept, rng)

    monkeypatch.setattr(job_module, "rule", noted)
    monkeypatch.setattr(job_module, "STAYS_WARM_S", -1.0)
    list(pair.run(job_of(law, prompts=2, temperature=1.0, repeats=2, generate_tokens=2)))

    # Warm-up and four pairs of runs: one stream for the baseline, two for the speculative arm.
    assert len(states) == len(set(states)) == 3 * 5


def test_a_pair_warms_up_unless_it_ran_a_moment_ago(
    pair: Pair, law: Law, monkeypatch: pytest.MonkeyPatch
):
    seeds: list[int] = []

    def noted(temperature: float, accept: str, rng: np.random.Generator) -> Greedy:
        seeds.append(len(seeds))
        return rule(temperature, accept, rng)

    monkeypatch.setattr(job_module, "rule", noted)
    monkeypatch.setattr(job_module, "STAYS_WARM_S", -1.0)
    list(pair.run(job_of(law, prompts=1, generate_tokens=2)))
    cold = len(seeds)
    monkeypatch.setattr(job_module, "STAYS_WARM_S", 3600.0)
    list(pair.run(job_of(law, prompts=1, generate_tokens=2)))

    # A rule for the baseline, two for the speculative arm, and as many again to warm up.
    assert (cold, len(seeds) - cold) == (6, 3)
