from __future__ import annotations

import json
import os
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize

from farm.domain.prompt import Category
from farm.errors import ResourceError, UserError
from farm.gguf import calibration, calibration_writer
from farm.gguf.calibration import QUANTISATIONS, is_calibration, law_of, make_pair, pair_bytes
from farm.gguf.calibration_shapes import SHAPES, ModelShape, Shape
from farm.gguf.compat import check_pair
from farm.gguf.header import Header, read_header


def _tensor(header: Header, name: str) -> np.ndarray:
    """A tensor as float32, decoded by the gguf package: (rows, columns)."""
    info = next(tensor for tensor in header.tensors if tensor.name == name)
    start = header.file_bytes - _data_bytes(header) + info.offset
    raw = np.fromfile(header.path, np.uint8, info.nbytes, offset=start)
    if info.type is GGMLQuantizationType.F16:
        return raw.view("<f2").astype(np.float32).reshape(info.shape[::-1])
    if info.type is GGMLQuantizationType.F32:
        return raw.view("<f4").reshape(info.shape[::-1])
    return dequantize(raw.reshape(info.shape[1], -1), info.type)


def _data_bytes(header: Header) -> int:
    last = max(header.tensors, key=lambda tensor: tensor.offset)
    return last.offset + -(-last.nbytes // header.alignment) * header.alignment


@pytest.mark.parametrize("quantisation", list(QUANTISATIONS))
def test_the_stored_numbers_are_the_law(quantisation: str, tmp_path: Path) -> None:
    for path in make_pair("tiny", quantisation, tmp_path, seed=5):
        header = read_header(path)
        law = law_of(header)
        embedding, output = (_tensor(header, f"{n}.weight") for n in ("token_embd", "output"))
        norm = _tensor(header, "output_norm.weight")
        logits = law.target_logits if "target" in path.name else law.draft_logits
        for token in (0, 65, 259, 300, header.vocab_size - 1):
            row = embedding[token]
            stream = row / np.sqrt(np.mean(row.astype(float) ** 2)) * norm
            stored = output @ stream
            state = law.state(token)
            tokens = law.successors[state] + 258
            assert stored[tokens] == pytest.approx(logits[state], abs=1e-5)
            assert np.delete(stored, tokens).max() < -55
        for layer in range(header.n_layer or 0):
            for name in ("attn_output", "ffn_down"):
                assert not _tensor(header, f"blk.{layer}.{name}.weight").any()
            up = _tensor(header, f"blk.{layer}.ffn_up.weight")
            assert 1e-3 < np.abs(up).mean() < 0.1
            assert np.isfinite(up).all()


def test_zero_matrices_keep_random_bytes_where_the_type_has_scales(tmp_path: Path) -> None:
    target, _ = make_pair("tiny", "q4_0", tmp_path)
    header = read_header(target)
    info = next(t for t in header.tensors if t.name == "blk.0.ffn_down.weight")
    start = header.file_bytes - _data_bytes(header) + info.offset
    raw = np.fromfile(target, np.uint8, info.nbytes, offset=start)
    assert len(np.unique(raw)) == 256


def test_says_what_it_is(tiny_pair: tuple[Path, Path]) -> None:
    target, draft = map(read_header, tiny_pair)
    assert target.name == "specfarm calibration pair, not a language model (target)"
    assert is_calibration(target)
    assert is_calibration(draft)
    assert law_of(target) == law_of(draft)
    assert check_pair(target, draft).compatible
    expected = json.loads(target.text("specfarm.calibration.expected") or "")
    law = law_of(target)
    assert expected["temperature"] == 0
    assert expected["acceptance_by_n_max"]["chat"]["8"] == pytest.approx(
        law.expected_acceptance("chat", 8, 0.0).rate, abs=1e-6
    )


def test_no_calibration_file(real_vocabularies: Path) -> None:
    header = read_header(real_vocabularies / "ggml-vocab-llama-spm.gguf")
    assert not is_calibration(header)
    with pytest.raises(UserError, match="not a calibration file"):
        law_of(header)


def test_an_equal_pair_is_reused_and_another_law_is_another_file(tmp_path: Path) -> None:
    first = make_pair("tiny", "f16", tmp_path, seed=1)
    times = [path.stat().st_mtime_ns for path in first]
    assert make_pair("tiny", "f16", tmp_path, seed=1) == first
    assert [path.stat().st_mtime_ns for path in first] == times
    other = make_pair("tiny", "f16", tmp_path, seed=1, agreement={Category.CHAT: 1.0})
    assert other != first
    law = law_of(read_header(other[1]))
    assert law.expected_acceptance("chat", 8, 0.0).rate == pytest.approx(1.0)


def test_a_damaged_half_is_made_again_to_the_same_bytes(tmp_path: Path) -> None:
    target, draft = make_pair("tiny", "q8_0", tmp_path)
    content = draft.read_bytes()
    draft.write_bytes(content[:-50])
    assert make_pair("tiny", "q8_0", tmp_path) == (target, draft)
    assert draft.read_bytes() == content


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    make_pair("tiny", "f16", tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (sum(pair_bytes(SHAPES["tiny"], "f16")),) * 2


def test_a_full_disk_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(calibration.shutil, "disk_usage", lambda _: usage(9, 9, 1_000_000))
    with pytest.raises(ResourceError, match=r"has 0\.0 GB free; choose a smaller shape"):
        make_pair("tiny", "f16", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_small_memory_is_refused_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = namedtuple("memory", "total")
    monkeypatch.setattr(calibration.psutil, "virtual_memory", lambda: memory(1_000_000))
    with pytest.raises(ResourceError, match="to load"):
        make_pair("tiny", "f16", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert make_pair("tiny", "f16", tmp_path, force=True)[0].is_file()


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), ResourceError),
    ],
)
def test_a_failure_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, raised: type
) -> None:
    whole = calibration_writer.tensor_slices

    def failing(plan, *rest):  # type: ignore[no-untyped-def]
        if plan.name == "blk.1.ffn_up.weight":
            raise failure
        yield from whole(plan, *rest)

    monkeypatch.setattr(calibration_writer, "tensor_slices", failing)
    with pytest.raises(raised):
        make_pair("tiny", "f16", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    target, draft = make_pair("tiny", "f16", tmp_path)
    target.unlink()
    abandoned = target.with_name(f"{target.name}.999999999.part")
    running = target.with_name(f"{target.name}.{os.getppid()}.part")
    abandoned.touch()
    running.touch()
    make_pair("tiny", "f16", tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([target, draft, running])


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no calibration shape 'huge'; choose one of tiny"):
        make_pair("huge", "f16", tmp_path)
    with pytest.raises(UserError, match="no calibration quantisation 'q1'"):
        make_pair("tiny", "q1", tmp_path)
    narrow = ModelShape(1, 64, 64, 1, 1, 64)
    with pytest.raises(UserError, match="too narrow"):
        make_pair(Shape("narrow", "", narrow, narrow), "f16", tmp_path)
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(UserError, match="cannot be made"):
        make_pair("tiny", "f16", blocked / "folder")
