from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable

from farm.domain.decoding import AcceptRule, Settings, SpeculationKind
from farm.report.serving import (
    ACCEPT_NOTE,
    EXAMPLE_NOTE,
    LOOKUP_NOTE,
    LOSSY_SERVING_NOTE,
    servings,
)
from farm.science.recommendation import Verdict
from farm.services.recommend import Recommendation

Make = Callable[..., Recommendation]


def arguments(command: str | None) -> list[str]:
    """Return what a POSIX shell makes of the command."""
    assert command is not None
    shown = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    )
    return shown.stdout.splitlines()


def test_on_names_every_speculation_parameter(make: Make) -> None:
    (serving,) = servings([make(p_min=0.75)])
    assert arguments(serving.command) == shlex.split(
        "llama-server -m target.gguf -md draft.gguf --spec-type draft-simple "
        "--spec-draft-n-max 8 --spec-draft-n-min 0 --spec-draft-p-min 0.75 -np 1 --temp 0"
    )
    assert serving.notes == ()


def test_off_serves_the_target_alone(make: Make) -> None:
    (serving,) = servings([make(verdict=Verdict.OFF)])
    assert serving.command == "llama-server -m target.gguf -np 1 --temp 0"
    assert not serving.speculates


def test_undecided_has_no_command(make: Make) -> None:
    assert servings([make(verdict=Verdict.UNDECIDED, speedup=None)]) == []


def test_equal_commands_are_joined(make: Make) -> None:
    (serving,) = servings([make(category="chat"), make(category="tool-calls")])
    assert serving.categories == ("chat", "tool-calls")


def test_names_from_files_are_quoted_for_the_shell(make: Make) -> None:
    hostile = "my model; $(touch gone) 'x'.gguf"
    (serving,) = servings([make(target=hostile, draft="-flag.gguf")])
    given = arguments(serving.command)
    assert given[2] == hostile
    assert given[4] == "./-flag.gguf"


def test_only_settings_set_by_hand_are_passed(make: Make) -> None:
    settings = Settings(threads=6, gpu_layers=99, draft_gpu_layers=0, cache_type_k="q8_0")
    (on,) = servings([make(settings=settings)])
    assert arguments(on.command)[-10:] == shlex.split("-t 6 -ngl 99 -ngld 0 -ctk q8_0 -ctkd q8_0")
    (off,) = servings([make(verdict=Verdict.OFF, settings=settings)])
    assert not {"-ngld", "-ctkd"} & {*arguments(off.command)}


def test_every_setting_that_shapes_a_server_is_in_its_command(make: Make) -> None:
    settings = Settings(
        batch_threads=8,
        numa="distribute",
        draft_cache_type_k="q8_0",
        draft_cache_type_v="q4_0",
        draft_device="CUDA1",
        experts_used=4,
        depth_tokens=4096,
    )
    (on,) = servings([make(settings=settings, architecture="qwen3moe")])
    assert arguments(on.command)[-12:] == shlex.split(
        "-tb 8 --numa distribute -devd CUDA1 -ctkd q8_0 -ctvd q4_0 "
        "--override-kv qwen3moe.expert_used_count=int:4"
    )
    lookup = make(
        kind=SpeculationKind.NGRAM_MOD, draft=None, settings=settings, architecture="qwen3moe"
    )
    (without_draft,) = servings([lookup])
    assert not {"-devd", "-ctkd", "-ctvd"} & {*arguments(without_draft.command)}


def test_a_lossy_setting_is_said_beside_its_command(make: Make) -> None:
    (lossy,) = servings([make(settings=Settings(cache_type_v="q8_0"))])
    (lossless,) = servings([make(settings=Settings(draft_cache_type_v="q8_0"))])
    assert lossy.notes == (LOSSY_SERVING_NOTE,)
    assert lossless.notes == ()


def test_calibration_is_an_example_only(make: Make) -> None:
    (serving,) = servings([make(is_calibration=True)])
    assert serving.notes == (EXAMPLE_NOTE,)


def test_prompt_lookup_has_no_equal_in_llama_server(make: Make) -> None:
    (serving,) = servings([make(kind=SpeculationKind.PROMPT_LOOKUP)])
    assert serving.command is None
    assert serving.notes == (LOOKUP_NOTE,)


def test_rejection_sampling_above_0_is_not_what_llama_server_does(make: Make) -> None:
    (exact,) = servings([make(temperature=0.7, accept=AcceptRule.EXACT)])
    (match,) = servings([make(temperature=0.7, accept=AcceptRule.MATCH)])
    assert exact.notes == (ACCEPT_NOTE,)
    assert match.notes == ()


def test_kinds_without_a_draft_name_their_own_parameters(make: Make) -> None:
    (mod,) = servings([make(kind=SpeculationKind.NGRAM_MOD, draft=None)])
    assert arguments(mod.command)[3:11] == shlex.split(
        "--spec-type ngram-mod --spec-ngram-mod-n-max 8 --spec-ngram-mod-n-min 0 "
        "--spec-ngram-mod-n-match 24"
    )
    (table,) = servings([make(kind=SpeculationKind.NGRAM_MAP_K4V, draft=None)])
    assert arguments(table.command)[3:7] == shlex.split(
        "--spec-type ngram-map-k4v --spec-ngram-map-k4v-size-m 8"
    )
    (heads,) = servings([make(kind=SpeculationKind.DRAFT_MTP, draft=None)])
    assert arguments(heads.command)[3:7] == shlex.split(
        "--spec-type draft-mtp --spec-draft-n-max 8"
    )
