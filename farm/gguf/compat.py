"""Whether a draft fits a target, by llama.cpp's own rules and from the headers alone."""

from __future__ import annotations

from dataclasses import dataclass

from farm.domain.decoding import SpeculationKind
from farm.gguf.calibration_law import METADATA_LAW
from farm.gguf.header import Header
from farm.gguf.heads import made_for, misfits
from farm.gguf.vocabulary import Vocabulary, vocabulary_of

MAX_VOCAB_DIFFERENCE = 128
"""SPEC_VOCAB_MAX_SIZE_DIFFERENCE in common/speculative.cpp."""

FIRST_COMPARED_TOKEN = 5
"""SPEC_VOCAB_CHECK_START_TOKEN_ID in common/speculative.cpp."""

LARGE_DRAFT_SHARE = 0.05
"""Published advice: a draft of more than 5 % of the target's parameters seldom pays."""

RECURRENT = frozenset(("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"))
"""llm_arch_is_recurrent in src/llama-arch.cpp."""

HYBRID = frozenset(
    (
        *("jamba", "falcon-h1", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "nemotron_h"),
        *("nemotron_h_moe", "qwen3next", "kimi-linear", "bailingmoe3", "kimi-k3", "glm5-next"),
        *("qwen35", "qwen35moe", "qwen4exp", "deepseek4", "minimax-01"),
    )
)
"""llm_arch_is_hybrid in src/llama-arch.cpp."""


@dataclass(frozen=True)
class Compatibility:
    """The verdict on a pair for one kind: `reasons` say why not, `notes` what to know anyhow."""

    kind: SpeculationKind
    compatible: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


def check_pair(target: Header, draft: Header, kind: SpeculationKind | None = None) -> Compatibility:
    """Say whether llama.cpp would let `draft` propose tokens for `target`.

    kind: the one that the draft is made for where none is named. Vocabularies are compared for
    draft-simple alone, as common_speculative_are_compatible in common/speculative.cpp does; where
    that stops at the first finding, every finding is reported here.
    """
    kind = kind or made_for(draft) or SpeculationKind.DRAFT_SIMPLE
    reasons = misfits(kind, target, draft)
    if kind is SpeculationKind.DRAFT_SIMPLE and not reasons:
        reasons = _vocabularies(target, draft)
    notes = (
        *_state_notes("target", target),
        *_state_notes("draft", draft),
        *_size(target, draft),
        *_calibration(target, draft),
    )
    return Compatibility(kind, not reasons, reasons, notes)


def _vocabularies(target: Header, draft: Header) -> tuple[str, ...]:
    ours, theirs = vocabulary_of(target), vocabulary_of(draft)
    if isinstance(ours, str) or isinstance(theirs, str):
        return tuple(
            f"the {role} {finding}"
            for role, finding in (("target", ours), ("draft", theirs))
            if isinstance(finding, str)
        )
    return (*_types(ours, theirs), *_added(ours, theirs), *_texts(ours, theirs))


def _types(target: Vocabulary, draft: Vocabulary) -> list[str]:
    if target.type == draft.type:
        return []
    return [f"vocabulary types differ: target {target.type}, draft {draft.type}"]


def _added(target: Vocabulary, draft: Vocabulary) -> list[str]:
    reasons = []
    for name, ours, our_id, theirs, their_id in (
        ("BOS", target.add_bos, target.bos, draft.add_bos, draft.bos),
        ("EOS", target.add_eos, target.eos, draft.add_eos, draft.eos),
    ):
        if ours != theirs:
            said = {True: "adds", False: "does not add"}
            reasons.append(f"the target {said[ours]} {name}, the draft {said[theirs]} it")
        elif ours and our_id != their_id:
            reasons.append(f"{name} tokens differ: target {_id(our_id)}, draft {_id(their_id)}")
    return reasons


def _id(token: int | None) -> str:
    return "none" if token is None else str(token)


def _texts(target: Vocabulary, draft: Vocabulary) -> list[str]:
    reasons = []
    difference = abs(target.size - draft.size)
    if difference > MAX_VOCAB_DIFFERENCE:
        reasons.append(
            f"vocabulary sizes differ by {difference}, more than {MAX_VOCAB_DIFFERENCE}: "
            f"target {target.size}, draft {draft.size}"
        )
    if target.tokens.raw != draft.tokens.raw:
        ours, theirs = target.tokens.strings(), draft.tokens.strings()
        for token in range(FIRST_COMPARED_TOKEN, min(len(ours), len(theirs))):
            # The fast comparison first: reading a text as llama.cpp does is the slow part.
            if ours[token] != theirs[token] and _loaded(ours, token) != _loaded(theirs, token):
                reasons.append(
                    f"token {token} differs: target {_shown(ours[token])}, "
                    f"draft {_shown(theirs[token])}"
                )
                break
    return reasons


def _loaded(texts: list[bytes], token: int) -> bytes:
    return texts[token].split(b"\0", 1)[0] or f"[EMPTY_{token}]".encode()


def _shown(text: bytes) -> str:
    return repr(text.decode("utf-8", "backslashreplace"))


def _state_notes(role: str, header: Header) -> list[str]:
    kind = (
        "recurrent"
        if header.architecture in RECURRENT
        else "hybrid"
        if header.architecture in HYBRID
        else None
    )
    if kind is None:
        return []
    return [
        f"the {role} is {kind} ({header.architecture}) and cannot roll its state back: llama.cpp "
        f"restores checkpoints and replays, often slower than no speculation"
    ]


def _size(target: Header, draft: Header) -> list[str]:
    empty = [role for role, header in (("target", target), ("draft", draft)) if not header.tensors]
    if empty:
        return [f"the {role} holds a vocabulary and no weights" for role in empty]
    share = draft.parameter_count / target.parameter_count
    if share <= LARGE_DRAFT_SHARE:
        return []
    return [f"the draft has {share:.0%} of the target's parameters; above 5 % it seldom pays"]


def _calibration(target: Header, draft: Header) -> list[str]:
    ours, theirs = target.text(METADATA_LAW), draft.text(METADATA_LAW)
    if ours is None and theirs is None:
        return []
    if ours == theirs:
        return ["this is a calibration pair, not two language models"]
    return ["these are not the two halves of one calibration pair: nothing is known about them"]
