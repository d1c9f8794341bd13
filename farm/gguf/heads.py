"""Drafts that are trained for one target: what their files must hold for llama.cpp to use them.

llama.cpp checks little of this itself. A file of another kind may load and draft for a whole
job, and never have one token accepted: that reads like a finding and is none.
"""

from __future__ import annotations

from farm.domain.decoding import SpeculationKind
from farm.gguf.header import Header

EAGLE3 = "eagle3"
DFLASH = "dflash"
SHARING_THE_TARGETS_CACHE = "gemma4-assistant"
"""Multi-token prediction beside its target, on the target's own keys and values (src/models/)."""

MARKOV_HEAD = "markov_w1.weight"
"""What makes a DSpark draft of a DFlash draft (llama_model_dflash::load_arch_tensors)."""

DEFAULT_BLOCK_TOKENS = 16
"""block_size of common_speculative_impl_draft_dflash where the file names none."""


def made_for(draft: Header) -> SpeculationKind | None:
    """Return the one kind that a file can draft for, None for a model of its own."""
    if draft.architecture == EAGLE3:
        return SpeculationKind.DRAFT_EAGLE3
    if draft.architecture == DFLASH:
        is_dspark = _has(draft, MARKOV_HEAD)
        return SpeculationKind.DRAFT_DSPARK if is_dspark else SpeculationKind.DRAFT_DFLASH
    # Heads alone: llama.cpp's models ask for the first layer's norm as we do here.
    alone = draft.tensors and not _has(draft, "blk.0.attn_norm.weight")
    if draft.architecture == SHARING_THE_TARGETS_CACHE or (_n_heads(draft) and alone):
        return SpeculationKind.DRAFT_MTP
    return None


def misfits(kind: SpeculationKind, target: Header, draft: Header | None) -> tuple[str, ...]:
    """Return why files can't do a kind of speculation, () where nothing in the headers is against.

    draft None: the target is to use heads of its own.
    """
    if alien := made_for(target):
        return (f"the target holds heads for {alien} and no model of its own",)
    if draft is None:
        return _without_heads("target", target) if kind is SpeculationKind.DRAFT_MTP else ()
    found = made_for(draft)
    if kind is SpeculationKind.DRAFT_MTP and found in (None, kind):
        return _without_heads("draft", draft)
    if found is kind:
        return _unread(target, draft)
    if found is not None:
        return (f"the draft is made for {found}, not for {kind}",)
    if kind is not SpeculationKind.DRAFT_SIMPLE:
        return (f"the draft is a {draft.architecture} model and not made for {kind}",)
    return ()


def most_drafted(kind: SpeculationKind, target: Header, draft: Header | None) -> int | None:
    """Return the largest K that files of a kind can do, None where there is no limit.

    Beyond it llama.cpp drafts that many and goes on (common/speculative.cpp).
    """
    heads = draft or target
    if kind is SpeculationKind.DRAFT_MTP:
        shares = heads.architecture == SHARING_THE_TARGETS_CACHE
        return None if shares or _n_heads(heads) <= 1 else _n_heads(heads)
    if kind not in (SpeculationKind.DRAFT_DFLASH, SpeculationKind.DRAFT_DSPARK):
        return None
    block = heads.arch_number("block_size") or DEFAULT_BLOCK_TOKENS
    # A block's first token is known to DFlash; DSpark drafts in its place unless told otherwise.
    from_anchor = heads.metadata.get(f"{heads.architecture}.sample_from_anchor", True)
    return block if kind is SpeculationKind.DRAFT_DSPARK and from_anchor else block - 1


def _without_heads(role: str, header: Header) -> tuple[str, ...]:
    # A file whose heads were left out may still count them.
    if _n_heads(header) and any("nextn." in tensor.name for tensor in header.tensors):
        return ()
    return (f"the {role} holds no heads for multi-token prediction (nextn_predict_layers)",)


def _unread(target: Header, draft: Header) -> tuple[str, ...]:
    """Return what keeps a draft from reading the target's hidden states."""
    reasons = []
    # EAGLE-3 may be of another width than its target, DFlash is as wide.
    width = draft.arch_number("target_hidden_size") or draft.n_embd
    if width != target.n_embd:
        reasons.append(
            f"the draft reads hidden states of {width}, the target's are {target.n_embd}"
        )
    layers = (target.n_layer or 0) - _n_heads(target)
    last = draft.arch_number("target_layers")
    if last is not None and last > layers:
        reasons.append(f"the draft reads layer {last}, the target has {layers}")
    return tuple(reasons)


def _n_heads(header: Header) -> int:
    return header.arch_number("nextn_predict_layers") or 0


def _has(header: Header, tensor: str) -> bool:
    return any(info.name == tensor for info in header.tensors)
