"""llama.cpp's low-level API, just as far as an exact decoding loop needs it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.bench.failure import Failure
from worker.bench.load import devices, overrides

# llama_cpp installs a log callback on import that hides what llama.cpp says; ours shows it.
from llama_cpp import llama_cpp as lib  # isort: skip

Logits = NDArray[np.float32]

CACHE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "bf16": 30,
}
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
BATCH_TOKENS = 512
WORDS = {"type_k": CACHE_TYPES, "type_v": CACHE_TYPES, "flash_attn_type": FLASH_ATTENTION}
# What a context may round or clamp.
READ_BACK = ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_threads", "n_threads_batch")

# The binding's own gives a pointer object; its address, which is all that is wanted, costs more
# to take than the call itself.
_logits_address = ctypes.cast(
    lib.llama_get_logits, ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
)


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _log(_level: int, text: bytes, _data: object) -> None:
    sys.stderr.buffer.write(text)
    sys.stderr.buffer.flush()


def start_backend() -> None:
    """Initialise llama.cpp; its log goes to stderr."""
    lib.llama_log_set(_log, ctypes.c_void_p(0))
    lib.llama_backend_init()


def describe_build() -> dict[str, Any]:
    """Return the sha256 over llama.cpp's shared libraries, and what they say of themselves."""
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    digest = hashlib.sha256()
    seen: set[Path] = set()
    for path in sorted(folder.iterdir()):
        # A wheel holds each library under several version names, as copies or links.
        real = path.resolve()
        if real in seen or not any(part in path.name for part in (".so", ".dylib", ".dll")):
            continue
        seen.add(real)
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return {
        "name": f"llama-cpp-python=={llama_cpp.__version__}",
        "digest": digest.hexdigest(),
        "system_info": lib.llama_print_system_info().decode(errors="replace").strip(),
        "commit": _commit(),
        "libraries": {"python": platform.python_version(), "numpy": np.__version__},
    }


def _commit() -> str | None:
    """Return the commit compiled into ggml, None in releases that have no word for it."""
    try:
        ask = lib._lib.ggml_commit
    except AttributeError:
        return None
    ask.restype = ctypes.c_char_p
    return str(ask().decode(errors="replace"))


def _told(params: ctypes.Structure) -> dict[str, Any]:
    """Return every parameter that is a number or a switch; the others are addresses."""
    fields = [(field[0], field[1]) for field in params._fields_]
    return {
        name: getattr(params, name)
        for name, kind in fields
        if issubclass(kind, ctypes._SimpleCData) and kind is not ctypes.c_void_p
    }


class Model:
    """A loaded GGUF file with its vocabulary.

    device: where its layers go, None for llama.cpp's own choice. numbers: metadata that counts in
    place of the file's.
    """

    def __init__(
        self,
        path: str,
        gpu_layers: int | None,
        device: str | None = None,
        numbers: Mapping[str, int] | None = None,
    ) -> None:
        params = lib.llama_model_default_params()
        if gpu_layers is not None:
            params.n_gpu_layers = gpu_layers
        if device is not None:
            chosen = devices(device)
            params.devices = ctypes.cast(chosen, ctypes.c_void_p)
        if numbers:
            changed = overrides(numbers)
            params.kv_overrides = ctypes.cast(changed, type(params.kv_overrides))
        # Both are addresses there.
        chosen_by_hand = {"device": device, "kv_overrides": dict(numbers or {}) or None}
        self.parameters = _told(params) | {
            name: value for name, value in chosen_by_hand.items() if value is not None
        }
        self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise Failure("load-failed", f"llama.cpp could not load {Path(path).name}.")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.vocab_tokens: int = lib.llama_vocab_n_tokens(self._vocab)
        self.rolls_back: bool = not (
            lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model)
        )

    def close(self) -> None:
        """Free the model; its contexts come first."""
        lib.llama_model_free(self._model)

    def tokenize(self, text: str, *, bare: bool = False) -> list[int]:
        """Return token ids, with the model's own special tokens around them unless `bare`."""
        raw, whole = text.encode(), not bare
        capacity = len(raw) + 8
        while True:
            buffer = (lib.llama_token * capacity)()
            count = lib.llama_tokenize(self._vocab, raw, len(raw), buffer, capacity, whole, True)
            if count >= 0:
                return list(buffer[:count])
            # Minus what it needs: a byte of text can be several tokens.
            capacity = -count

    def ends_text(self, token: int) -> bool:
        """Say whether the token ends a generation."""
        return token in self._end_tokens

    @cached_property
    def _end_tokens(self) -> frozenset[int]:
        ends = partial(lib.llama_vocab_is_eog, self._vocab)
        return frozenset(filter(ends, range(self.vocab_tokens)))

    def context(self, settings: dict[str, Any]) -> Context:
        """Return a fresh context that decodes up to BATCH_TOKENS in one pass."""
        params = lib.llama_context_default_params()
        params.n_ctx = settings["context_tokens"]
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_seq_max = 1
        if settings["threads"] is not None:
            params.n_threads = settings["threads"]
        if settings["batch_threads"] is not None:
            params.n_threads_batch = settings["batch_threads"]
        params.type_k = CACHE_TYPES[settings["cache_type_k"]]
        params.type_v = CACHE_TYPES[settings["cache_type_v"]]
        params.flash_attn_type = FLASH_ATTENTION[settings["flash_attention"]]
        params.no_perf = True
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            raise Failure(
                "load-failed",
                "llama.cpp could not make a context with these settings; its log says why.",
            )
        told = _told(params) | {name: getattr(lib, f"llama_{name}")(context) for name in READ_BACK}
        for name, words in WORDS.items():
            told[name] = next((word for word, code in words.items() if code == told[name]), "other")
        return Context(context, self.vocab_tokens, told)


class Context:
    """One sequence's KV cache and the logits of its last pass. `length` tokens are cached."""

    def __init__(self, context: Any, vocab_tokens: int, parameters: dict[str, Any]) -> None:
        self.parameters = parameters
        self._context = context
        self._memory = lib.llama_get_memory(context)
        self.vocab_tokens = vocab_tokens
        self._batch = lib.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._token = _array(self._batch.token, ctypes.c_int32)
        self._pos = _array(self._batch.pos, ctypes.c_int32)
        self._wanted = _array(self._batch.logits, ctypes.c_int8)
        self._wanted[:] = [True] * BATCH_TOKENS
        for index in range(BATCH_TOKENS):
            self._batch.n_seq_id[index] = 1
            self._batch.seq_id[index][0] = 0
        self._logits_at: int | None = None
        self._logits: Logits = np.empty((1, vocab_tokens), np.float32)
        self._first: Logits = self._logits[0]
        self.length = 0

    def close(self) -> None:
        """Free the cache and everything else of the context."""
        lib.llama_batch_free(self._batch)
        lib.llama_free(self._context)

    def clear(self) -> None:
        """Forget the sequence."""
        lib.llama_memory_clear(self._memory, False)
        self.length = 0

    def roll_back(self, length: int) -> None:
        """Drop every cached token from position `length` on."""
        if length >= self.length:
            return
        if not lib.llama_memory_seq_rm(self._memory, 0, length, -1):
            raise Failure(
                "unsupported",
                "This model's state can't be rolled back (recurrent or hybrid), so rejected "
                "tokens can't be undone; speculation in process needs an attention-only model.",
            )
        self.length = length

    def prefill(self, tokens: Sequence[int]) -> Logits:
        """Append a prompt in passes of BATCH_TOKENS; return the last token's logits (a view)."""
        for start in range(0, len(tokens), BATCH_TOKENS):
            self._pass(tokens[start : start + BATCH_TOKENS], only_last=True)
        return self._first

    def decode(self, tokens: Sequence[int]) -> Logits:
        """Append tokens in one pass; return logits [tokens, vocabulary], a view that the next
        pass overwrites."""
        return self._pass(tokens, only_last=False)

    def step(self, token: int) -> Logits:
        """Append one token; return its logits [vocabulary], a view that the next pass overwrites.

        As `decode` of one token, in less code: what stands between two passes of a baseline.
        """
        self._batch.n_tokens = 1
        self._token[0] = token
        self._pos[0] = self.length
        self._require(lib.llama_decode(self._context, self._batch), 1)
        self.length += 1
        self._see_outputs()
        return self._first

    def _pass(self, tokens: Sequence[int], *, only_last: bool) -> Logits:
        # After a pass the processor's caches hold weights, and each step here costs ten times what
        # it does in a loop of its own. So: ctypes, whose arrays take less code than numpy's, and
        # nothing is set that stays the same.
        count, length = len(tokens), self.length
        self._batch.n_tokens = count
        self._token[:count] = tokens
        self._pos[:count] = range(length, length + count)
        if only_last:
            self._wanted[: count - 1] = [False] * (count - 1)
        status = lib.llama_decode(self._context, self._batch)
        if only_last:
            self._wanted[: count - 1] = [True] * (count - 1)
        self._require(status, count)
        self.length = length + count
        self._see_outputs()
        logits: Logits = self._logits[: 1 if only_last else count]
        return logits

    def _require(self, status: int, count: int) -> None:
        if status != 0:
            raise Failure(
                "decode-failed" if status < 0 else "bad-request",
                f"llama_decode returned {status} at {self.length} + {count} tokens"
                + ("; the context is full." if status == 1 else "."),
            )

    def _see_outputs(self) -> None:
        address = _logits_address(self._context)
        if address != self._logits_at:
            # A view over the most rows there can be; only those of the last pass are valid, and
            # only those are handed out. Making a view costs more than an argmax.
            pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            self._logits = np.ctypeslib.as_array(pointer, (BATCH_TOKENS, self.vocab_tokens))
            self._first = self._logits[0]
            self._logits_at = address


def _array(pointer: Any, element: Any) -> Any:
    """Return a pointer's BATCH_TOKENS elements as an array that takes slices."""
    return (element * BATCH_TOKENS).from_address(ctypes.addressof(pointer.contents))
