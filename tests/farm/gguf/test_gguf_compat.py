from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from farm.gguf.calibration import make_pair
from farm.gguf.compat import Compatibility, check_pair
from farm.gguf.header import read_header
from farm.gguf.vocabulary import Vocabulary, vocabulary_of

Write = Callable[..., Path]


def _check(write: Write, target: dict[str, Any], draft: dict[str, Any]) -> Compatibility:
    return check_pair(
        read_header(write(name="t.gguf", rows=100, **target)),
        read_header(write(name="d.gguf", rows=1, **draft)),
    )


TEXTS = ("<unk>", "<s>", "</s>", "a", "b", "c", "d", "e", "f", "g")


def _texts(count: int) -> list[str]:
    return [f"t{token}" for token in range(count)]


@pytest.mark.parametrize(
    ("target", "draft"),
    [
        ({}, {}),
        ({}, {"add_bos_token": True, "bos_token_id": 1, "add_eos_token": False}),
        ({"add_bos_token": False, "bos_token_id": 1}, {"add_bos_token": False, "bos_token_id": 2}),
        ({"eos_token_id": 1}, {"eos_token_id": 2}),
        ({"texts": _texts(300)}, {"texts": _texts(300 - 128)}),
        ({"texts": ("A", "B", "C", "D", "E", *TEXTS[5:])}, {}),
        ({"texts": ("A", "B", "C", "D", "E", "F")}, {"texts": ("A", "B", "C", "D", "E", "F", "G")}),
        ({"texts": (*TEXTS, "")}, {"texts": (*TEXTS, "[EMPTY_10]")}),
        ({"texts": (*TEXTS, "x\0y")}, {"texts": (*TEXTS, "x")}),
        ({"model": "gpt2", "pre": "llama-bpe"}, {"model": "gpt2", "add_bos_token": True}),
    ],
)
def test_pairs_llama_cpp_takes(write_gguf: Write, target: Any, draft: Any) -> None:
    verdict = _check(write_gguf, target, draft)
    assert verdict.compatible, verdict.reasons
    assert verdict.reasons == ()


@pytest.mark.parametrize(
    ("target", "draft", "reason"),
    [
        ({}, {"model": "gpt2"}, "vocabulary types differ: target SPM, draft BPE"),
        ({}, {"add_bos_token": False}, "the target adds BOS, the draft does not add it"),
        ({}, {"bos_token_id": 2}, "BOS tokens differ: target 1, draft 2"),
        ({"add_eos_token": True}, {}, "the target adds EOS, the draft does not add it"),
        (
            {"add_eos_token": True, "eos_token_id": 7},
            {"add_eos_token": True},
            "EOS tokens differ: target 7, draft 2",
        ),
        (
            {"texts": _texts(300)},
            {"texts": _texts(300 - 129)},
            "vocabulary sizes differ by 129, more than 128: target 300, draft 171",
        ),
        (
            {},
            {"texts": (*TEXTS[:5], "C", *TEXTS[6:])},
            "token 5 differs: target 'c', draft 'C'",
        ),
        ({}, {"model": None}, "the draft has no vocabulary"),
        ({}, {"model": "new"}, "the draft has the tokenizer 'new', which this farm does not know"),
        ({"texts": ()}, {}, "the target has no token list"),
        ({"model": "gpt2", "pre": "tekken"}, {"model": "gpt2"}, "the target adds BOS"),
    ],
)
def test_pairs_llama_cpp_refuses(write_gguf: Write, target: Any, draft: Any, reason: str) -> None:
    verdict = _check(write_gguf, target, draft)
    assert not verdict.compatible
    assert any(said.startswith(reason) for said in verdict.reasons), verdict.reasons


def test_every_finding_is_reported(write_gguf: Write) -> None:
    verdict = _check(
        write_gguf, {"texts": _texts(300)}, {"texts": ["x"] * 7, "add_bos_token": False}
    )
    assert len(verdict.reasons) == 3


def test_notes_do_not_decide(write_gguf: Write) -> None:
    verdict = _check(write_gguf, {"architecture": "qwen3next"}, {"architecture": "mamba"})
    assert verdict.compatible
    assert verdict.notes[0].startswith("the target is hybrid (qwen3next)")
    assert verdict.notes[1].startswith("the draft is recurrent (mamba)")
    large = check_pair(*[read_header(write_gguf(name=f"{i}.gguf")) for i in "ab"])
    assert large.notes == (
        "the draft has 100% of the target's parameters; above 5 % it seldom pays",
    )


def test_halves_of_different_calibration_pairs_are_told_apart(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    target, draft = map(read_header, tiny_pair)
    assert "this is a calibration pair, not two language models" in check_pair(target, draft).notes
    other = read_header(make_pair("tiny", "f16", tmp_path, seed=99)[1])
    assert any("not the two halves" in note for note in check_pair(target, other).notes)


def test_published_cases_on_real_vocabularies(real_vocabularies: Path) -> None:
    def header(name: str) -> Any:
        return read_header(real_vocabularies / f"ggml-vocab-{name}.gguf")

    started = time.perf_counter()
    verdict = check_pair(header("qwen2"), header("llama-bpe"))
    assert time.perf_counter() - started < 1.0
    assert not verdict.compatible
    assert any("target 151936, draft 128256" in reason for reason in verdict.reasons)
    assert check_pair(header("qwen2"), header("qwen35")).compatible
    assert not check_pair(header("deepseek-coder"), header("deepseek-llm")).compatible


def test_vocabulary_facts_are_llama_cpps_own(real_vocabularies: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, None)
    checked = 0
    for path in sorted(real_vocabularies.glob("ggml-vocab-*.gguf")):
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not model:
            continue
        vocab = llama_cpp.llama_model_get_vocab(model)
        ours = vocabulary_of(read_header(path))
        assert isinstance(ours, Vocabulary)
        assert (
            llama_cpp.llama_vocab_get_add_bos(vocab),
            llama_cpp.llama_vocab_bos(vocab),
            llama_cpp.llama_vocab_get_add_eos(vocab),
            llama_cpp.llama_vocab_eos(vocab),
            llama_cpp.llama_vocab_n_tokens(vocab),
        ) == (
            ours.add_bos,
            -1 if ours.bos is None else ours.bos,
            ours.add_eos,
            -1 if ours.eos is None else ours.eos,
            ours.size,
        ), path.name
        llama_cpp.llama_model_free(model)
        checked += 1
    assert checked >= 10


def test_a_vocabulary_fits_itself(real_vocabularies: Path) -> None:
    headers = [read_header(path) for path in sorted(real_vocabularies.glob("ggml-vocab-*.gguf"))]
    for target, draft in product(headers, headers):
        if target is draft:
            assert check_pair(target, draft).compatible, target.path
