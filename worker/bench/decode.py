"""The two arms: plain decoding, and draft-and-verify. Both on the same target context.

A run's first token comes out of the prompt's own pass; decode time starts after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

from worker.bench.drafters import Drafter
from worker.bench.llama import Context
from worker.bench.sampling import Greedy, top_two_gap


@dataclass
class Run:
    """One generation: output ids, times in milliseconds, and what speculation did."""

    output_ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    prompt_ms: float = 0.0
    draft_prompt_ms: float = 0.0
    decode_ms: float = 0.0
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    drafted_per_position: list[int] = field(default_factory=list)
    accepted_per_position: list[int] = field(default_factory=list)


EndsText = Callable[[int], bool]


def baseline(
    target: Context, rule: Greedy, prompt: list[int], generate_tokens: int, ends_text: EndsText
) -> Run:
    """Decode one token per pass until `generate_tokens` or the end of the text."""
    run = Run(prompt_tokens=len(prompt))
    token = _first_token(target, rule, prompt, run)
    output = run.output_ids
    start = perf_counter()
    while len(output) < generate_tokens and not ends_text(token):
        token = rule.pick(target.step(token))
        output.append(token)
    run.decode_ms = (perf_counter() - start) * 1e3
    return run


def speculative(
    target: Context,
    drafter: Drafter,
    rule: Greedy,
    prompt: list[int],
    generate_tokens: int,
    n_max: int,
    ends_text: EndsText,
) -> Run:
    """Decode in rounds: draft up to n_max tokens, verify them in one pass, keep what stands.

    A round never drafts past `generate_tokens`, so that no drafted token is counted that could
    not have been used.
    """
    run = Run(prompt_tokens=len(prompt))
    run.drafted_per_position = [0] * n_max
    run.accepted_per_position = [0] * n_max
    token = _first_token(target, rule, prompt, run)
    start = perf_counter()
    drafter.begin(prompt)
    run.draft_prompt_ms = (perf_counter() - start) * 1e3

    tokens = [*prompt, token]
    output = run.output_ids
    start = perf_counter()
    while len(output) < generate_tokens and not ends_text(token):
        room = min(n_max, generate_tokens - len(output) - 1)
        begun = perf_counter()
        proposal = drafter.propose(tokens, room)
        drafted_at = perf_counter()
        logits = target.decode((token, *proposal.tokens))
        verdict = rule.verify(logits, proposal.tokens, proposal.laws)
        emitted = [*proposal.tokens[: verdict.accepted], verdict.token]
        for index, emitted_token in enumerate(emitted):
            if ends_text(emitted_token):
                del emitted[index + 1 :]
                break
        output.extend(emitted)
        tokens.extend(emitted)
        token = emitted[-1]
        kept = len(tokens) - 1
        target.roll_back(kept)
        drafter.keep(kept)
        run.draft_ms += (drafted_at - begun) * 1e3
        run.verify_ms += (perf_counter() - drafted_at) * 1e3
        _count(run, len(proposal.tokens), min(verdict.accepted, len(emitted)))
    run.decode_ms = (perf_counter() - start) * 1e3
    return run


def top_two_margin(
    target: Context, prompt: list[int], output_ids: list[int], position: int
) -> float | None:
    """Return the baseline's gap between its two best logits where output_ids[position] was drawn.

    Walks the baseline's own path again, one token per pass, so that its arithmetic is the same.
    None where the text ended before the position.
    """
    if position > len(output_ids):
        return None
    target.clear()
    logits = target.prefill(prompt)
    for token in output_ids[:position]:
        logits = target.step(token)
    return top_two_gap(logits)


def _first_token(target: Context, rule: Greedy, prompt: list[int], run: Run) -> int:
    target.clear()
    start = perf_counter()
    token = rule.pick(target.prefill(prompt))
    run.prompt_ms = (perf_counter() - start) * 1e3
    run.output_ids.append(token)
    return token


def _count(run: Run, drafted: int, accepted: int) -> None:
    run.rounds += 1
    run.drafted += drafted
    run.accepted += accepted
    for position in range(drafted):
        run.drafted_per_position[position] += 1
    for position in range(accepted):
        run.accepted_per_position[position] += 1
