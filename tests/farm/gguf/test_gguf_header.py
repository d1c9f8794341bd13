from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter

from farm.errors import UserError
from farm.gguf.header import Array, read_header

Write = Callable[..., Path]


def test_says_what_the_writer_wrote(write_gguf: Write) -> None:
    header = read_header(write_gguf(rows=4))
    assert (header.architecture, header.name) == ("llama", "small")
    assert (header.n_layer, header.n_embd, header.n_head, header.n_head_kv) == (2, 32, 4, 2)
    assert (header.context_length, header.vocab_size, header.file_type) == (128, 10, "F16")
    assert header.parameter_count == 4 * 32 + 32
    assert header.tensor_bytes == 4 * 32 * 2 + 32 * 4
    assert header.file_bytes == header.path.stat().st_size
    assert header.tokens is not None
    assert header.tokens.strings()[3] == b"a"
    assert header.tokens.values()[1] == "<s>"


def test_agrees_with_the_gguf_package(tiny_pair: tuple[Path, Path]) -> None:
    for path in tiny_pair:
        ours, theirs = read_header(path), GGUFReader(path)
        assert [(t.name, t.shape, t.type, t.nbytes) for t in ours.tensors] == [
            (t.name, tuple(int(n) for n in t.shape), t.tensor_type, t.n_bytes)
            for t in theirs.tensors
        ]
        scores = ours.metadata["tokenizer.ggml.scores"]
        assert isinstance(scores, Array)
        assert scores.values() == theirs.fields["tokenizer.ggml.scores"].contents()
        assert ours.tokens is not None
        assert ours.tokens.values() == theirs.fields["tokenizer.ggml.tokens"].contents()


def test_every_truncation_is_one_clear_error(write_gguf: Write) -> None:
    path = write_gguf()
    whole = path.read_bytes()
    for length in range(0, len(whole) - 64, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"download|corrupt"):
            read_header(path)


def test_says_how_many_bytes_are_missing(write_gguf: Write) -> None:
    path = write_gguf()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut short: 100 of its [\d,]+ bytes.*download it again"):
        read_header(path)


def _with_word(path: Path, offset: int, word: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(word)] = word
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("offset", "word", "said"),
    [
        (0, b"GGML", "no GGUF model"),
        (4, struct.pack("<I", 1), "version 1"),
        (4, struct.pack(">I", 3), "big-endian"),
        (8, struct.pack("<Q", 1 << 60), "claims .* tensors"),
        (16, struct.pack("<Q", 1 << 40), "claims .* metadata fields"),
        (24, struct.pack("<Q", 1 << 50), "ends inside its header"),
        (24 + 8 + 20, struct.pack("<I", 77), "unknown type 77"),
    ],
)
def test_corruption(write_gguf: Write, offset: int, word: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_header(_with_word(write_gguf(), offset, word))


def test_no_file_folder_and_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        read_header(tmp_path / "nothing.gguf")
    with pytest.raises(UserError, match="is a folder"):
        read_header(tmp_path)
    empty = tmp_path / "empty.gguf"
    empty.touch()
    with pytest.raises(UserError, match="holds 0 bytes"):
        read_header(empty)
    page = tmp_path / "page.gguf"
    page.write_text("<html>Access denied</html>")
    with pytest.raises(UserError, match="does not start with 'GGUF'"):
        read_header(page)


def test_random_garbage_never_escapes_the_error_tree(write_gguf: Write) -> None:
    path = write_gguf()
    whole = path.read_bytes()
    for offset in range(4, len(whole) - 200, 3):
        path.write_bytes(whole[:offset] + b"\xff" * 8 + whole[offset + 8 :])
        try:
            read_header(path)
        except UserError:
            continue


def _split(folder: Path, number: int) -> Path:
    path = folder / f"m-{number:05d}-of-00002.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_uint16("split.no", number - 1)
    writer.add_uint16("split.count", 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def test_split_models_count_all_parts(tmp_path: Path) -> None:
    first = _split(tmp_path, 1)
    with pytest.raises(UserError, match=r"m-00002-of-00002\.gguf is missing"):
        read_header(first)
    second = _split(tmp_path, 2)
    header = read_header(first)
    assert header.parts == (first, second)
    assert header.file_bytes == first.stat().st_size + second.stat().st_size
    with pytest.raises(UserError, match=r"give the first part, m-00001-of-00002\.gguf"):
        read_header(second)
    renamed = first.rename(tmp_path / "other.gguf")
    with pytest.raises(UserError, match="llama-gguf-split"):
        read_header(renamed)


def test_large_vocabularies_are_read_in_well_under_a_second(real_vocabularies: Path) -> None:
    started = time.perf_counter()
    header = read_header(real_vocabularies / "ggml-vocab-qwen2.gguf")
    assert header.vocab_size == 151_936
    assert time.perf_counter() - started < 0.8
