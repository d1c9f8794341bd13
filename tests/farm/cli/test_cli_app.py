"""`farm` itself: errors as one sentence on stderr, exit codes as the help documents them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from farm.errors import (
    BenchmarkError,
    InfrastructureError,
    ResourceError,
    SpecfarmError,
    UserError,
)

application = pytest.importorskip("farm.cli.app", exc_type=ImportError)

Farm = Callable[..., int]

ERRORS = [
    UserError("The sweep is wrong."),
    InfrastructureError("The broker is away."),
    ResourceError("The memory is too small."),
    BenchmarkError("failed", "The benchmark failed."),
]


@pytest.fixture
def farm(farm_home: Path, monkeypatch: pytest.MonkeyPatch) -> Farm:
    """Return a function that runs `farm` with arguments and gives its exit code."""

    def farm(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["farm", *arguments])
        try:
            application.main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        return 0

    return farm


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_known_error_is_one_sentence_and_its_code(
    farm: Farm,
    error: SpecfarmError,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(application, "app", raising(error))

    assert farm() == error.exit_code

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"farm: {error}\n"


def test_the_codes_are_those_that_the_help_documents(
    farm: Farm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert farm("--help") == 0

    shown = " ".join(capsys.readouterr().out.split())
    assert "0 done; 1 unexpected failure; 2 bad input; 3 broker, database or disk" in shown
    assert [error.exit_code for error in ERRORS] == [2, 3, 4, 5]


def test_the_help_names_every_command(farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    farm("--help")

    words = [line.strip("│| ").split(" ")[0] for line in capsys.readouterr().out.splitlines()]
    assert [word for word in words if word in application.COMMANDS] == list(application.COMMANDS)


def test_bad_input_from_a_command_reaches_the_shell(
    farm: Farm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert farm("submit", "nowhere.yaml") == 2

    printed = capsys.readouterr()
    assert printed.err.startswith("farm: There is no sweep file nowhere.yaml")
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("arguments", [("fly",), ("status", "seven"), ("submit", "--fast")])
def test_wrong_usage_is_bad_input(farm: Farm, arguments: tuple[str, ...]) -> None:
    assert farm(*arguments) == 2


def test_an_interruption_is_130(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    from farm.cli import status

    monkeypatch.setattr(status, "open_session", raising(KeyboardInterrupt()))

    assert farm("status") == 130


def test_every_command_that_prints_data_offers_json(
    farm: Farm, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("status", "recommend", "results", "machines", "compat", "doctor", "submit"):
        farm(command, "--help")
        assert "--json" in capsys.readouterr().out, command
