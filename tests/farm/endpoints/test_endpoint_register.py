"""The register: what may be in it, and that no key ever is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farm.endpoints import register
from farm.endpoints.register import (
    Api,
    Endpoint,
    add,
    find,
    is_near,
    pair_build,
    pair_builds,
    pair_names,
    registered,
    remove,
)
from farm.errors import UserError

LOCAL = "http://127.0.0.1:8000"


def test_what_was_added_is_found(farm_home: Path) -> None:
    added = add(Endpoint("fast", LOCAL, "m", None, Api.VLLM, "VLLM_API_KEY"))
    assert find("fast") == added
    assert registered() == [added]
    kept = json.loads((farm_home / "endpoints" / "fast.json").read_text())
    assert kept["key_variable"] == "VLLM_API_KEY"


def test_a_name_is_registered_once(farm_home: Path) -> None:
    add(Endpoint("fast", LOCAL))
    add(Endpoint("fast", "http://127.0.0.1:9000"))
    assert [one.url for one in registered()] == ["http://127.0.0.1:9000"]


def test_removed_it_is_gone(farm_home: Path) -> None:
    add(Endpoint("fast", LOCAL))
    remove("fast")
    assert registered() == []
    with pytest.raises(UserError, match="No endpoint 'fast' is registered on this machine"):
        remove("fast")


@pytest.mark.parametrize("given", [LOCAL, f"{LOCAL}/", f"{LOCAL}/v1", f"{LOCAL}/v1/"])
def test_the_apis_own_path_is_left_out(farm_home: Path, given: str) -> None:
    assert add(Endpoint("fast", given)).url == LOCAL


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://user:secret@127.0.0.1:8000", "--key-env"),
        ("http://secret@127.0.0.1:8000", "--key-env"),
        ("ftp://127.0.0.1", "not a server's URL"),
        ("127.0.0.1:8000", "not a server's URL"),
        ("file:///etc/passwd", "not a server's URL"),
        ("http://127.0.0.1:8000/v1?key=secret", "more than host, port and path"),
        ("http://127.0.0.1:99999", "not a URL"),
        ("http://8.8.8.8", "Add --remote if they may"),
        ("http://[2606:4700::1111]", "Add --remote if they may"),
        ("http://no-such-host.invalid", "not known here"),
    ],
)
def test_a_url_that_will_not_do_is_refused(farm_home: Path, url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        add(Endpoint("fast", url))
    assert "secret" not in str(caught.value)
    assert registered() == []


def test_an_address_outside_is_taken_where_prompts_may_leave(farm_home: Path) -> None:
    assert add(Endpoint("far", "https://8.8.8.8", remote=True)).remote


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a==b", "../up", "-x", "a" * 41, "a/b"])
def test_a_name_that_a_job_could_not_carry_is_refused(farm_home: Path, name: str) -> None:
    for call in (lambda: add(Endpoint(name, LOCAL)), lambda: find(name), lambda: remove(name)):
        with pytest.raises(UserError, match="letters, digits"):
            call()


def test_a_key_in_place_of_its_variable_is_refused(farm_home: Path) -> None:
    with pytest.raises(UserError, match="not the key itself") as caught:
        add(Endpoint("fast", LOCAL, key_variable="sk-4711"))
    assert "sk-4711" not in str(caught.value)


def test_a_draft_model_is_lm_studios_alone(farm_home: Path) -> None:
    add(Endpoint("fast", LOCAL, draft_model="d", api=Api.LM_STUDIO))
    with pytest.raises(UserError, match="vllm takes no draft model"):
        add(Endpoint("fast", LOCAL, draft_model="d", api=Api.VLLM))


def test_a_file_that_cannot_be_read_is_left_out(farm_home: Path) -> None:
    add(Endpoint("fast", LOCAL))
    (farm_home / "endpoints" / "torn.json").write_text('{"name": "to')
    assert [one.name for one in registered()] == ["fast"]


def test_every_ordered_pair_is_a_build(farm_home: Path) -> None:
    for name in ("a", "b", "c"):
        add(Endpoint(name, LOCAL))
    builds = pair_builds()
    assert len(builds) == len(set(builds)) == 6
    assert pair_build("a", "c") in builds
    assert {pair_names(build) for build in builds} == {
        (one, other) for one in "abc" for other in "abc" if one != other
    }


@pytest.mark.parametrize(
    ("address", "near"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("10.1.2.3", True),
        ("192.168.1.7", True),
        ("100.101.102.103", True),
        ("fe80::1%eth0", True),
        ("8.8.8.8", False),
        ("::ffff:8.8.8.8", False),
        ("::ffff:10.0.0.1", True),
        ("2606:4700::1111", False),
    ],
)
def test_what_is_near(address: str, near: bool) -> None:
    assert is_near(address) is near


def test_a_register_that_was_never_written_is_empty(farm_home: Path) -> None:
    assert registered() == []
    assert register.pair_builds() == ()
