"""From two endpoints' answers to samples: by token ids where both tell them, else by text."""

from __future__ import annotations

import hashlib
from itertools import accumulate

import numpy as np

from farm.domain.job import Arm
from farm.domain.measurement import Parity, Sample
from farm.science.parity import first_divergence
from worker.engines.answers import Answer
from worker.engines.counters import rounds_of


def compare(plain: Answer, fast: Answer, *, by_ids: bool) -> int | None:
    """Return where the answers part, None where they don't: a token's index, or a character's."""
    return first_divergence(_units(plain, by_ids=by_ids), _units(fast, by_ids=by_ids))


def margin(walk: Answer, plain: Answer, position: int, *, by_ids: bool) -> float | None:
    """Return the gap of the two best logits at a position of the baseline's own path.

    Log-probabilities differ as logits do. By text it is the token that the character belongs to.
    None where the second walk went elsewhere, or the server tells no alternatives.
    """
    walked, before = (_units(one, by_ids=by_ids)[:position] for one in (walk, plain))
    index: int | None = position
    if not by_ids:
        texts = [token.text for token in walk.tokens]
        ends = accumulate(map(len, texts))
        whole = "".join(texts) == walk.text
        index = next((at for at, end in enumerate(ends) if end > position), None) if whole else None
    if walked != before or index is None or index >= len(walk.tokens):
        return None
    best = walk.tokens[index].best
    return best[0] - best[1] if len(best) == 2 else None


def sample_of(
    answer: Answer,
    prompt_digest: str,
    repeat: int,
    arm: Arm,
    parity: Parity = Parity.NOT_COMPARED,
    position: int | None = None,
    gap: float | None = None,
    *,
    by_ids: bool,
) -> Sample:
    """Return one run's sample. Without ids, output_ids is empty, output_digest is over the text in
    UTF-8 and first_divergence counts characters."""
    plain = arm is Arm.BASELINE
    drafts = answer.drafts
    unknown = 0.0 if plain and drafts is not None else None
    ids = (answer.ids or ()) if by_ids else ()
    output = np.asarray(ids, "<i4").tobytes() if by_ids else answer.text.encode()
    rounds = per_position = None
    if drafts is not None:
        per_position = () if plain else drafts.accepted_per_position
        if plain:
            rounds = 0
        elif drafts.rounds is not None:
            rounds = rounds_of(answer.generated_tokens, drafts.rounds, drafts.accepted)
    return Sample(
        prompt_digest=prompt_digest,
        repeat=repeat,
        arm=arm,
        prompt_tokens=answer.prompt_tokens,
        generated_tokens=answer.generated_tokens,
        prompt_ms=answer.prompt_ms,
        draft_prompt_ms=unknown,
        decode_ms=answer.decode_ms,
        draft_ms=unknown,
        verify_ms=unknown,
        rounds=rounds,
        drafted=drafts.drafted if drafts else None,
        accepted=drafts.accepted if drafts else None,
        accepted_per_position=per_position,
        drafted_per_position=() if plain and drafts is not None else None,
        output_ids=ids,
        output_digest=hashlib.sha256(output).hexdigest(),
        peak_rss_bytes=None,
        parity=parity,
        first_divergence=position,
        margin_logits=gap,
    )


def _units(answer: Answer, *, by_ids: bool) -> tuple[int, ...]:
    """Return what is compared: ids, or the text's code points."""
    return (answer.ids or ()) if by_ids else tuple(map(ord, answer.text))
