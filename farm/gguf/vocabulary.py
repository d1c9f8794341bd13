"""What llama.cpp makes of a file's vocabulary fields, defaults included.

Follows llama_vocab::impl::load in src/llama-vocab.cpp, as far as speculation asks: the type of
the vocabulary, whether BOS and EOS are added, and which tokens they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from farm.gguf.header import Array, Header


@dataclass(frozen=True)
class Special:
    """Ids a tokenizer model starts from, None for "no such token"."""

    type: str
    bos: int | None
    eos: int | None
    add_bos: bool
    add_eos: bool


TOKENIZERS: dict[str, Special] = {
    "llama": Special("SPM", 1, 2, True, False),
    "bert": Special("WPM", 101, None, True, False),
    "gpt2": Special("BPE", 11, 11, False, False),
    "hybriddna": Special("BPE", 11, 11, False, False),
    "whitespace": Special("BPE", 11, 11, False, False),
    "gemma4": Special("BPE", None, None, True, False),
    "t5": Special("UGM", None, 1, False, True),
    "rwkv": Special("RWKV", None, None, False, False),
    "plamo2": Special("PLAMO2", 1, 2, False, False),
    "test": Special("TEST", None, None, False, False),
}

BPE_ADDING_BOS = frozenset(
    (
        *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0"),
        *("lfm2", "jina-v5-nano", "tekken", "chameleon"),
    )
)
BPE_WITHOUT_BOS = frozenset(("chatglm-bpe", "glm4", "glm5"))
BPE_ALWAYS_ADDING_BOS = frozenset(("gemma4", "granite-embed-multi-311m"))
"""llama.cpp overrides add_bos to true here, whatever the file says."""


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary as llama.cpp would load it; None ids mean "no such token"."""

    type: str
    tokens: Array
    add_bos: bool
    bos: int | None
    add_eos: bool
    eos: int | None

    @property
    def size(self) -> int:
        """Return the number of tokens."""
        return self.tokens.count


def vocabulary_of(header: Header) -> Vocabulary | str:
    """Return a file's vocabulary, or the reason why llama.cpp could not compare it."""
    model = header.text("tokenizer.ggml.model")
    tokens = header.tokens
    if model in (None, "none", "no_vocab"):
        return "has no vocabulary"
    if model not in TOKENIZERS:
        return f"has the tokenizer '{model}', which this farm does not know"
    if tokens is None:
        return "has no token list"
    start = TOKENIZERS[model]
    pre = "gemma4" if model == "gemma4" else header.text("tokenizer.ggml.pre") or ""
    is_bpe = start.type == "BPE"
    add_bos = start.add_bos or (is_bpe and pre in BPE_ADDING_BOS)
    add_bos = _flag(header, "tokenizer.ggml.add_bos_token", add_bos)
    if is_bpe and pre in BPE_ALWAYS_ADDING_BOS:
        add_bos = True
    bos = None if is_bpe and pre in BPE_WITHOUT_BOS else start.bos
    return Vocabulary(
        type=start.type,
        tokens=tokens,
        add_bos=add_bos,
        bos=_special(header, "tokenizer.ggml.bos_token_id", bos, tokens.count),
        add_eos=_flag(header, "tokenizer.ggml.add_eos_token", start.add_eos),
        eos=_special(header, "tokenizer.ggml.eos_token_id", start.eos, tokens.count),
    )


def _flag(header: Header, key: str, default: bool) -> bool:
    value = header.metadata.get(key)
    return value if isinstance(value, bool) else default


def _special(header: Header, key: str, default: int | None, count: int) -> int | None:
    value = header.number(key)
    if value is not None and 0 <= value < count:
        return value
    return default if default is not None and default < count else None
