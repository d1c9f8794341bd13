from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from trained_heads import TrainedHeads
from typer.testing import CliRunner

from farm.cli.compat import compat
from farm.domain.decoding import SpeculationKind
from farm.gguf.compat import check_pair
from farm.gguf.header import Header, TensorInfo, read_header
from farm.gguf.heads import made_for, misfits, most_drafted

Heads = dict[str, TrainedHeads]
MTP = SpeculationKind.DRAFT_MTP


FIRST_LAYER = "blk.0.attn_norm.weight"


def _header(architecture: str, *tensors: str, **numbers: int) -> Header:
    fields = {f"{architecture}.{key}": value for key, value in numbers.items()}
    metadata = {"general.architecture": architecture, **fields}
    held = tuple(TensorInfo(name, (1,), GGMLQuantizationType.F32, 0) for name in tensors)
    return Header(Path(f"{architecture}.gguf"), 3, 32, 0, metadata, held)


def test_a_file_tells_which_kind_it_is_made_for(heads: Heads) -> None:
    for own in heads.values():
        assert made_for(read_header(own.target)) is None
        if own.draft:
            assert made_for(read_header(own.draft)) is own.kind
    assert made_for(_header("gemma4-assistant", nextn_predict_layers=4)) is MTP


def test_a_vocabulary_of_its_own_is_no_hindrance(heads: Heads, tmp_path: Path) -> None:
    """llama.cpp compares vocabularies for draft-simple alone."""
    own = heads["draft-eagle3"]
    assert own.draft is not None
    other = tmp_path / "other.gguf"
    other.write_bytes(own.draft.read_bytes())
    tokens = GGUFReader(other, "r+").fields["tokenizer.ggml.tokens"]
    tokens.parts[tokens.data[300]][:] = ord("z")
    verdict = check_pair(read_header(own.target), read_header(other))
    assert (verdict.kind, verdict.compatible) == (SpeculationKind.DRAFT_EAGLE3, True)


def test_a_model_of_its_own_is_no_trained_head(tiny_pair: tuple[Path, Path]) -> None:
    target, draft = (read_header(path) for path in tiny_pair)
    for kind in (SpeculationKind.DRAFT_EAGLE3, SpeculationKind.DRAFT_DFLASH):
        (reason,) = misfits(kind, target, draft)
        assert reason == f"the draft is a llama model and not made for {kind}"
    assert "nextn_predict_layers" in misfits(MTP, target, draft)[0]
    assert misfits(SpeculationKind.DRAFT_SIMPLE, target, draft) == ()


def test_a_target_with_heads_may_be_a_plain_draft_too(heads: Heads) -> None:
    whole, trunk = heads["draft-mtp"].target, heads["draft-mtp-file"].target
    assert misfits(SpeculationKind.DRAFT_SIMPLE, read_header(trunk), read_header(whole)) == ()
    assert misfits(MTP, read_header(trunk), read_header(whole)) == ()


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ({"block_count": 8, "embedding_length": 32}, "reads hidden states of 64, the target's"),
        ({"block_count": 5, "embedding_length": 64}, "reads layer 6, the target has 5"),
        (
            {"block_count": 6, "embedding_length": 64, "nextn_predict_layers": 1},
            "reads layer 6, the target has 5",
        ),
    ],
)
def test_a_draft_of_another_target_is_told_by_what_it_reads(
    target: dict[str, int], reason: str
) -> None:
    draft = _header("eagle3", target_hidden_size=64, embedding_length=32, target_layers=6)
    (found,) = misfits(
        SpeculationKind.DRAFT_EAGLE3, _header("glm4moe", FIRST_LAYER, **target), draft
    )
    assert reason in found


def test_heads_that_were_left_out_are_missed() -> None:
    """A file without them may still count them (trunk_only in llama.cpp's src/models/)."""
    trunk = _header("glm4moe", FIRST_LAYER, nextn_predict_layers=1)
    whole = _header("glm4moe", FIRST_LAYER, "blk.1.nextn.eh_proj.weight", nextn_predict_layers=1)
    assert misfits(MTP, whole, None) == ()
    assert "the target holds no heads" in misfits(MTP, trunk, None)[0]


def test_several_heads_draft_one_token_each() -> None:
    """Where they are chained; a single head drafts on from itself (common/speculative.cpp)."""
    assert most_drafted(MTP, _header("step35", nextn_predict_layers=3), None) == 3
    assert most_drafted(MTP, _header("glm4moe", nextn_predict_layers=1), None) is None
    assistant = _header("gemma4-assistant", nextn_predict_layers=4)
    assert most_drafted(MTP, _header("gemma4"), assistant) is None


def test_a_block_holds_what_the_file_says(tmp_path: Path) -> None:
    target, block = _header("llama"), _header("dflash")
    assert most_drafted(SpeculationKind.DRAFT_DFLASH, target, block) == 15
    path = tmp_path / "draft.gguf"
    writer = GGUFWriter(path, "dflash")
    writer.add_uint32("dflash.block_size", 10)
    writer.add_bool("dflash.sample_from_anchor", False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert most_drafted(SpeculationKind.DRAFT_DSPARK, target, read_header(path)) == 9


def test_compat_names_the_kind(heads: Heads) -> None:
    app = typer.Typer()
    app.command()(compat)
    own = heads["draft-dspark"]
    words = [str(own.target), str(own.draft)]
    assert "kind: draft-dspark" in CliRunner().invoke(app, words).stdout
    (row,) = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert (row["kind"], row["compatible"]) == ("draft-dspark", True)
