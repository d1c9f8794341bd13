"""The law against llama.cpp itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farm.gguf.calibration import calibration_prompt, law_of, make_pair, start_state
from farm.gguf.header import read_header

llama_cpp: Any = pytest.importorskip("llama_cpp")
QUIET = llama_cpp.llama_log_callback(lambda *_: None)
TEXT = "Wie heißt du? Please call <the> tool with [1, 2].\n" * 8

# Arithmetic on quantised weights rounds the stream to 8 bits.
TOLERANCE = {"f16": 1e-6, "q8_0": 1e-3, "q4_0": 1e-3, "q4_k": 1e-3}


class Decoder:
    """One model decoding one sequence, logits of the last token only."""

    def __init__(self, path: Path) -> None:
        llama_cpp.llama_log_set(QUIET, None)
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        # Repacked weights take instructions some virtual machines announce and do not carry.
        parameters.use_extra_bufts = False
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        assert self.model
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx, context.n_threads, context.n_threads_batch = 1024, 2, 2
        self.context = llama_cpp.llama_init_from_model(self.model, context)

    def tokens(self, text: str) -> list[int]:
        raw, buffer = text.encode(), (llama_cpp.llama_token * 4096)()
        count = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), buffer, 4096, True, True)
        return list(buffer[:count])

    def logits(self, tokens: list[int]) -> np.ndarray:
        held = (llama_cpp.llama_token * len(tokens))(*tokens)
        assert (
            llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(held, len(held)))
            == 0
        )
        size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        pointer = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, (size,)).astype(float)


@contextmanager
def _decoder(path: Path) -> Iterator[Decoder]:
    decoder = Decoder(path)
    yield decoder
    llama_cpp.llama_free(decoder.context)
    llama_cpp.llama_model_free(decoder.model)


@pytest.mark.parametrize("quantisation", list(TOLERANCE))
def test_llama_cpp_follows_the_law(quantisation: str, tmp_path: Path) -> None:
    target, draft = make_pair("tiny", quantisation, tmp_path, seed=2)
    law = law_of(read_header(target))
    prompt, start = calibration_prompt(law, "chat", TEXT), start_state(law, "chat", TEXT)
    for path, expected in ((target, law.target_probabilities), (draft, law.draft_probabilities)):
        with _decoder(path) as decoder:
            step, output = decoder.tokens(prompt), []
            for _ in range(40):
                logits = decoder.logits(step)
                odds = np.exp(logits - logits.max())
                state = law.state(step[-1])
                assert odds / odds.sum() == pytest.approx(
                    expected(state, 1.0), abs=TOLERANCE[quantisation]
                )
                step = [int(logits.argmax())]
                output += step
            if path == target:
                assert tuple(output) == law.greedy_walk(start, 40)


def test_a_prompt_of_text_ends_in_its_state(tiny_pair: tuple[Path, Path]) -> None:
    law = law_of(read_header(tiny_pair[0]))
    with _decoder(tiny_pair[0]) as decoder:
        for category in law.categories:
            for text in (TEXT, "", "🙂 <chat:0", "x" * 400):
                tokens = decoder.tokens(calibration_prompt(law, category, text))
                assert law.state(tokens[-1]) == start_state(law, category, text)
                assert all(law.state(token) == 0 for token in tokens[:-1])
        every = "".join(law.marker(state) for state in range(1, law.n_states))
        assert [law.state(t) for t in decoder.tokens(every)] == list(range(1, law.n_states))


def test_no_token_ends_generation(tiny_pair: tuple[Path, Path]) -> None:
    law = law_of(read_header(tiny_pair[0]))
    with _decoder(tiny_pair[0]) as decoder:
        ends = llama_cpp.llama_vocab_is_eog
        assert not any(ends(decoder.vocab, law.token(s)) for s in range(1, law.n_states))
        assert ends(decoder.vocab, 2)
