"""The control tells arithmetic from error: two faults, one in each, in the real decoding loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from farm.gguf.calibration import Law
from farm.science.parity import Cause, explain, first_divergence
from worker.bench.control import control_token
from worker.bench.decode import baseline
from worker.bench.job import Pair
from worker.bench.llama import Context
from worker.bench.sampling import Greedy, Verdict

PROMPTS = 6
TOKENS = 40
N_MAX = 4


@pytest.fixture(scope="module")
def pair(backend: None, tiny_pair: tuple[Path, Path], one_thread_payload: dict[str, Any]) -> Pair:
    """Return the tiny pair, ready for jobs."""
    return Pair(str(tiny_pair[0]), str(tiny_pair[1]), one_thread_payload)


def job_of(law: Law) -> dict[str, Any]:
    return {
        "prompts": [
            {"digest": f"{number:064x}", "text": f"prompt {number} {law.marker(130 + number)}"}
            for number in range(PROMPTS)
        ],
        "speculation": {
            "kind": "draft-simple", "n_max": N_MAX, "n_min": 0, "p_min": 0.0, "accept": "exact",
        },
        "temperature": 0.0, "seed": 0, "generate_tokens": TOKENS, "repeats": 1,
    }  # fmt: skip


def causes(pair: Pair, law: Law) -> list[Cause]:
    """Run a job; return the cause of every divergence there is."""
    found = []
    for sample in pair.run(job_of(law)):
        position = sample["first_divergence"]
        if sample["arm"] == "speculative" and position is not None:
            found.append(explain(sample["output_ids"][position], sample["control_token"]))
    return found


def is_odd(law: Law, token: int) -> bool:
    """Name some states, so that a fault shows at some positions and not at all."""
    return law.state(token) % 5 == 0


def runner_up_first(logits: NDArray[np.float32]) -> None:
    """Have the second best of one token's logits win."""
    second, first = np.argsort(logits)[-2:]
    logits[[first, second]] = logits[[second, first]]


def test_without_a_fault_nothing_parts(pair: Pair, law: Law):
    assert causes(pair, law) == []


def test_arithmetic_of_wide_passes_is_reproduced(
    pair: Pair, law: Law, monkeypatch: pytest.MonkeyPatch
):
    honest = Context.decode

    def rounds_otherwise(self: Context, tokens: Any) -> NDArray[np.float32]:
        logits = honest(self, tokens)
        for token, row in zip(tokens, logits, strict=True):
            if len(tokens) > 1 and is_odd(law, token):
                runner_up_first(row)
        return logits

    monkeypatch.setattr(Context, "decode", rounds_otherwise)
    found = causes(pair, law)

    assert set(found) == {Cause.ARITHMETIC}
    assert len(found) == PROMPTS


def test_an_error_of_the_rule_is_not_reproduced(
    pair: Pair, law: Law, monkeypatch: pytest.MonkeyPatch
):
    honest = Greedy.verify

    def accepts_too_much(self: Greedy, logits: Any, drafted: list[int], laws: Any) -> Verdict:
        verdict = honest(self, logits, drafted, laws)
        if verdict.accepted < len(drafted) and is_odd(law, drafted[verdict.accepted]):
            accepted = verdict.accepted + 1
            return Verdict(accepted, int(logits[accepted].argmax()))
        return verdict

    monkeypatch.setattr(Greedy, "verify", accepts_too_much)
    found = causes(pair, law)

    assert set(found) == {Cause.UNEXPLAINED}
    assert len(found) >= PROMPTS / 2


def test_a_cache_that_is_not_rolled_back_is_not_reproduced(
    backend: None,
    entangled_pair: tuple[Path, Path],
    one_thread_payload: dict[str, Any],
    law: Law,
    monkeypatch: pytest.MonkeyPatch,
):
    """Its logits depend on the whole sequence: the same sums over a wrong sequence."""
    pair = Pair(*map(str, entangled_pair), one_thread_payload)
    assert causes(pair, law) == []
    target = pair._contexts["target"]
    honest = Context.roll_back
    monkeypatch.setattr(
        Context,
        "roll_back",
        # One rejected token stays, as if it had been said.
        lambda self, length: honest(self, length + (self is target and length < self.length)),
    )
    found = causes(pair, law)

    assert Cause.UNEXPLAINED in found
    assert Cause.ARITHMETIC not in found


@pytest.mark.parametrize("position", [0, 1, N_MAX, N_MAX + 1, N_MAX + 2, TOKENS])
def test_passes_are_as_wide_as_a_verification_wherever_the_position_is(
    loaded: Any, law: Law, monkeypatch: pytest.MonkeyPatch, position: int
):
    prompt = [law.token(9)]
    run = baseline(loaded.target, Greedy(), prompt, TOKENS, lambda _: False)
    follows = baseline(loaded.target, Greedy(), prompt, TOKENS + 1, lambda _: False)
    honest, widths = Context.decode, []

    def noted(self: Context, tokens: Any) -> NDArray[np.float32]:
        widths.append(len(tokens))
        return honest(self, tokens)

    monkeypatch.setattr(Context, "decode", noted)
    token = control_token(loaded.target, prompt, run.output_ids, position, N_MAX)

    assert token == follows.output_ids[position]
    assert widths == [N_MAX + 1] * -(-position // (N_MAX + 1))
    assert first_divergence(run.output_ids, follows.output_ids) == TOKENS
