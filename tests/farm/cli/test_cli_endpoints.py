"""`farm endpoints`, as a shell would run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from endpoint_stand_in import Reply, json_reply, stand_in
from typer.testing import CliRunner, Result

from farm.cli import app as farm_app
from farm.cli.endpoints import app
from farm.errors import SpecfarmError

LOCAL = "http://127.0.0.1:8000"
STREAM = Reply(
    (
        b'data: {"choices": [{"text": "over the", "finish_reason": null}]}\n\n',
        b'data: {"choices": [{"text": " dog", "finish_reason": "length"}]}\n\n',
        b'data: {"choices": [], "usage": {"prompt_tokens": 13, "completion_tokens": 3}}\n\n',
        b"data: [DONE]\n\n",
    )
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_it_is_one_of_the_commands(farm_home: Path) -> None:
    done = CliRunner().invoke(farm_app.app, ["endpoints", "list"])
    assert done.exit_code == 0
    assert "No endpoint is registered here" in done.stdout


def test_add_list_remove(farm_home: Path) -> None:
    added = run("add", "fast", f"{LOCAL}/v1", "--model", "m", "--key-env", "KEY", "--json")
    (shown,) = json.loads(added.stdout)
    assert (shown["url"], shown["model"], shown["key_variable"]) == (LOCAL, "m", "KEY")
    assert json.loads(run("list", "--json").stdout) == [shown]
    assert "fast" in run("list").stdout
    assert run("remove", "fast").exit_code == 0
    assert "farm endpoints add" in run("list").stdout


def test_an_unknown_api_names_those_there_are(farm_home: Path) -> None:
    done = run("add", "fast", LOCAL, "--api", "sglang")
    assert done.exit_code == 2
    assert "lm-studio" in done.output


def test_check_says_what_is_reported_and_what_is_not(farm_home: Path) -> None:
    replies = {"/v1/models": json_reply({"data": [{"id": "m"}]}), "/v1/completions": STREAM}
    with stand_in(replies) as server:
        run("add", "fast", server.url)
        found = json.loads(run("check", "fast", "--json").stdout)
        shown = run("check", "fast").stdout
    assert (found["model"], found["api"], found["generated_tokens"]) == ("m", "openai", 3)
    assert (found["drafted"], found["accepted"], found["token_ids"]) == (None, None, False)
    assert shown.count("not reported") >= 4


@pytest.mark.parametrize(
    ("name", "kind"), [("nobody", "No endpoint 'nobody'"), ("gone", "does not answer")]
)
def test_check_says_why_it_cannot(farm_home: Path, name: str, kind: str) -> None:
    with stand_in({}) as server:
        run("add", "gone", server.url)
    error = run("check", name).exception
    assert isinstance(error, SpecfarmError)
    assert kind in str(error)
