"""What llama-server is asked, and what its answer means for a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from farm.domain.decoding import Sampling
from farm.domain.job import Arm, JobSpec
from farm.domain.measurement import Parity, Sample
from farm.errors import BenchmarkError
from worker.engines.contract import PreparedPrompt
from worker.engines.counters import Counters, difference, rounds_of


@dataclass(frozen=True)
class Finding:
    """A text next to its reference's; the fields are those of `Sample`."""

    parity: Parity = Parity.NOT_COMPARED
    first_divergence: int | None = None
    margin_logits: float | None = None
    control_token: int | None = None


@dataclass(frozen=True)
class Completion:
    """One answered request. rounds and accepted_per_position are None where the server does not
    report them."""

    prompt_digest: str
    prompt_tokens: int
    prompt_ms: float
    decode_ms: float
    output_ids: tuple[int, ...]
    drafted: int
    accepted: int
    rounds: int | None
    accepted_per_position: tuple[int, ...] | None
    peak_rss_bytes: int | None

    def sample(self, repeat: int, arm: Arm, finding: Finding) -> Sample:
        """Return the sample of this run. A server never says how long drafting took."""
        unknown = None if arm is Arm.SPECULATIVE else 0.0
        plain = arm is Arm.BASELINE
        return Sample(
            prompt_digest=self.prompt_digest,
            repeat=repeat,
            arm=arm,
            prompt_tokens=self.prompt_tokens,
            generated_tokens=len(self.output_ids),
            prompt_ms=self.prompt_ms,
            draft_prompt_ms=unknown,
            decode_ms=self.decode_ms,
            draft_ms=unknown,
            verify_ms=unknown,
            rounds=0 if plain else self.rounds,
            drafted=self.drafted,
            accepted=self.accepted,
            accepted_per_position=() if plain else self.accepted_per_position,
            drafted_per_position=() if plain else None,
            output_ids=self.output_ids,
            output_digest=hashlib.sha256(np.asarray(self.output_ids, "<i4").tobytes()).hexdigest(),
            peak_rss_bytes=self.peak_rss_bytes,
            **vars(finding),
        )


def request(
    prompt: str | Sequence[str | int],
    tokens: int,
    sampling: Sampling,
    seed: int,
    alternatives: int = 0,
) -> dict[str, Any]:
    """Return a `/completion` request under which a token's law is the plain softmax.

    prompt: a text, or texts and token ids in a row, which the server takes as they are.
    alternatives: how many of the best tokens to report with each drawn one.
    """
    return {
        "prompt": prompt,
        "n_predict": tokens,
        "stream": False,
        "cache_prompt": False,
        "return_tokens": True,
        "n_probs": alternatives,
        "seed": seed,
        "samplers": ["temperature"],
        "temperature": sampling.temperature,
        "dynatemp_range": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "typical_p": 1.0,
        "xtc_probability": 0.0,
        "mirostat": 0,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "dry_multiplier": 0.0,
        "ignore_eos": False,
    }


def read_completion(
    answer: dict[str, Any],
    spec: JobSpec,
    prompt: PreparedPrompt,
    before: Counters | None,
    after: Counters | None,
    peak_rss_bytes: int | None,
) -> Completion:
    """Return what an answer says. Raises BenchmarkError "garbage" or "bad-request".

    predicted_ms starts when the first token is there (llama.cpp: server_slot_stats; one token
    takes 0.001 ms), so it covers what `Sample.decode_ms` covers.
    """
    try:
        timings = answer["timings"]
        ids = tuple(int(token) for token in answer["tokens"])
        complete = len(ids) == timings["predicted_n"]
        prompt_tokens, prompt_ms = int(timings["prompt_n"]), float(timings["prompt_ms"])
        predicted_ms = float(timings["predicted_ms"])
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError("garbage", f"llama-server's answer lacks {error}.") from None
    if not complete:
        counted = timings["predicted_n"]
        raise BenchmarkError(
            "garbage", f"llama-server counts {counted} tokens and returned {len(ids)}."
        )
    room = spec.settings.context_tokens - spec.generate_tokens - spec.speculation.n_max
    if prompt_tokens > room:
        raise BenchmarkError(
            "bad-request",
            f"Prompt {prompt.digest[:12]} has {prompt_tokens} tokens and only {room} fit beside "
            "what is generated; raise context_tokens in the sweep.",
        )
    accepted = int(timings.get("draft_n_accepted", 0))
    rounds, per_position = None, None
    if before and after and before.drafts is not None and after.drafts is not None:
        rounds = rounds_of(len(ids), after.drafts - before.drafts, accepted)
        per_position = difference(after.accepted_per_position, before.accepted_per_position)
    return Completion(
        prompt_digest=prompt.digest,
        prompt_tokens=prompt_tokens,
        prompt_ms=prompt_ms,
        decode_ms=predicted_ms if len(ids) > 1 else 0.0,
        output_ids=ids,
        drafted=int(timings.get("draft_n", 0)),
        accepted=accepted,
        rounds=rounds,
        accepted_per_position=per_position,
        peak_rss_bytes=peak_rss_bytes,
    )


def margin_in(answer: dict[str, Any], baseline_ids: tuple[int, ...], position: int) -> float | None:
    """Return the gap of the two best logits at a position of the baseline's own path.

    The server reports log-probabilities at temperature 1, whose differences are the logits'. None
    where it took another path, reports fewer than two, or the text ended before.
    """
    walked = tuple(int(token) for token in answer.get("tokens", ()))
    return margin_at(answer, position) if walked[:position] == baseline_ids[:position] else None


def margin_at(answer: dict[str, Any], position: int) -> float | None:
    """Return the gap of the two best logits at a position of the answer, None where it has none."""
    entries = answer.get("completion_probabilities") or []
    if position >= len(entries):
        return None
    best = sorted(top["logprob"] for top in entries[position].get("top_logprobs", ()))[-2:]
    return float(best[1] - best[0]) if len(best) == 2 else None
