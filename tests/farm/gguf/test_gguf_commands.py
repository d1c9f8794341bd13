from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from farm.cli import calibrate, compat
from farm.errors import UserError

app = typer.Typer()
app.add_typer(calibrate.app)
app.command()(compat.compat)


def _run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)
    if isinstance(result.exception, UserError):
        raise result.exception
    return result.exit_code, result.stdout


def test_a_pair_in_words_and_json(tiny_pair: tuple[Path, Path]) -> None:
    code, text = _run("compat", *tiny_pair)
    assert code == 0
    assert "fits" in text
    code, text = _run("compat", *tiny_pair, "--json")
    (row,) = json.loads(text)
    assert (code, row["compatible"], row["reasons"]) == (0, True, [])


def test_an_unfit_pair_exits_2(tiny_pair: tuple[Path, Path], real_vocabularies: Path) -> None:
    code, text = _run("compat", tiny_pair[0], real_vocabularies / "ggml-vocab-llama-spm.gguf")
    assert code == 2
    assert "does not fit" in text
    assert "the target does not add BOS, the draft adds it" in text


def test_a_folder_is_a_matrix_of_what_can_be_read(tiny_pair: tuple[Path, Path]) -> None:
    folder = tiny_pair[0].parent
    broken = folder / "broken.gguf"
    broken.write_bytes(b"GGUF")
    try:
        code, text = _run("compat", folder)
        assert code == 0
        assert "left out" in text
        _, text = _run("compat", folder, "--json")
        assert [Path(row["draft"]) for row in json.loads(text)] == [tiny_pair[1]]
    finally:
        broken.unlink()
    with pytest.raises(UserError, match="is no folder"):
        _run("compat", tiny_pair[0])


def test_make_and_expect(tmp_path: Path) -> None:
    code, text = _run("calibrate", "make", "--shape", "tiny", "--out", tmp_path, "--json")
    made = json.loads(text)
    assert code == 0
    assert made["is_language_model"] is False
    code, text = _run("calibrate", "expect", made["draft"], "--k", 2, "--k", 8, "--json")
    rows = json.loads(text)
    assert len(rows) == 16
    assert {row["k"] for row in rows} == {2, 8}
    assert all(0 < row["acceptance_rate"] < 1 for row in rows)
    code, text = _run("calibrate", "expect", made["draft"], "--temperature", 0.7)
    assert code == 0
    assert "not language" in text


def test_shapes_say_they_are_no_language_models() -> None:
    code, text = _run("calibrate", "shapes")
    assert code == 0
    assert "not language models" in text
    _, text = _run("calibrate", "shapes", "--json")
    assert {row["shape"] for row in json.loads(text)} >= {"tiny", "demo", "qwen2.5-32b+0.5b"}
