"""Who answers, with which model, and when two models are one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from endpoint_stand_in import Reply, StandIn, json_reply, stand_in

from farm.endpoints.register import Api, Endpoint
from farm.endpoints.served import Served, ask, build_digest, target_digest
from farm.errors import BenchmarkError, UserError

Serve = Callable[..., Endpoint]


def listed(*models: dict[str, Any]) -> Reply:
    return json_reply({"object": "list", "data": models})


@pytest.fixture
def serve(farm_home: Path) -> Iterator[Serve]:
    with ExitStack() as stack:

        def serve(replies: dict[str, Reply], **registration: Any) -> Endpoint:
            server: StandIn = stack.enter_context(stand_in(replies))
            return Endpoint("e", server.url, **registration)

        yield serve


META = {"n_params": 7615616512, "n_vocab": 152064, "size": 4677120000, "n_ctx": 4096}


def test_a_llama_server_is_known_by_its_files_name(serve: Serve) -> None:
    endpoint = serve(
        {
            "/v1/models": listed(
                {"id": "/models/Qwen2.5-7B.gguf", "owned_by": "llamacpp", "meta": META}
            ),
            "/props": json_reply({"build_info": "b9235-d14ce3dab"}),
        }
    )
    served = ask(endpoint)
    assert (served.api, served.server) == (Api.LLAMA_SERVER, "llama-server b9235-d14ce3dab")
    assert (served.model, served.model_name) == ("Qwen2.5-7B", "Qwen2.5-7B")
    # The context is the server's choice, not the model's.
    assert dict(served.facts) == {key: META[key] for key in ("n_params", "n_vocab", "size")}


def test_vllm_names_its_version(serve: Serve) -> None:
    model = {"id": "Qwen/Qwen2.5-7B-Instruct", "owned_by": "vllm", "root": "/data/qwen"}
    served = ask(
        serve({"/v1/models": listed(model), "/version": json_reply({"version": "0.11.2"})})
    )
    assert (served.api, served.server) == (Api.VLLM, "vLLM 0.11.2")
    assert served.model_name == "Qwen/Qwen2.5-7B-Instruct"


def test_ollama_tells_its_models_digests(serve: Serve) -> None:
    replies = {
        "/v1/models": listed({"id": "llama3.2:latest"}, {"id": "qwen3:8b"}),
        "/api/version": json_reply({"version": "0.12.11"}),
        "/api/tags": json_reply(
            {"models": [{"name": "llama3.2:latest", "digest": "a80c"}, {"name": "qwen3:8b"}]}
        ),
    }
    served = ask(serve(replies, model="llama3.2"))
    assert (served.api, served.model) == (Api.OLLAMA, "llama3.2:latest")
    assert dict(served.facts) == {"digest": "a80c"}


def test_lm_studio_is_known_by_its_own_list(serve: Serve) -> None:
    replies = {
        "/v1/models": listed({"id": "granite"}),
        "/api/v0/models": listed({"id": "granite", "compatibility_type": "gguf"}),
    }
    assert ask(serve(replies)).api is Api.LM_STUDIO


def test_any_other_server_speaks_openai(serve: Serve) -> None:
    served = ask(serve({"/v1/models": listed({"id": "m"})}))
    assert (served.api, served.model) == (Api.OPENAI, "m")


def test_the_users_word_comes_before_what_is_found_out(serve: Serve) -> None:
    endpoint = serve({"/v1/models": listed({"id": "m", "owned_by": "vllm"})}, api=Api.OPENAI)
    assert ask(endpoint).api is Api.OPENAI


def test_a_server_without_a_list_takes_the_model_as_named(serve: Serve) -> None:
    assert ask(serve({}, model="m")).model == "m"


def test_one_of_several_models_must_be_named(serve: Serve) -> None:
    replies = {"/v1/models": listed({"id": "a"}, {"id": "b"})}
    with pytest.raises(UserError, match=r"lists 2 models \(a, b\).*--model"):
        ask(serve(replies))
    with pytest.raises(BenchmarkError, match="has no model c; it lists a, b") as caught:
        ask(serve(replies, model="c"))
    assert caught.value.kind == "model-missing"


def test_a_list_that_needs_a_key_says_so(serve: Serve) -> None:
    with pytest.raises(BenchmarkError, match="--key-env") as caught:
        ask(serve({"/v1/models": json_reply({}, 401)}))
    assert caught.value.kind == "unauthorized"


def test_a_server_that_is_still_loading_says_so(serve: Serve) -> None:
    loading = json_reply({"error": {"code": 503, "message": "Loading model"}}, 503)
    with pytest.raises(BenchmarkError, match="answered 503: Loading model"):
        ask(serve({"/v1/models": loading}))


def test_control_characters_do_not_reach_a_terminal(serve: Serve) -> None:
    escape = "\x1b[2J"
    models = listed({"id": f"m{escape}"}, {"id": "m", "owned_by": "vllm", "root": f"r{escape}"})
    version = json_reply({"version": f"1{escape}"})
    served = ask(serve({"/v1/models": models, "/version": version}))
    assert (served.model, served.server, served.facts) == ("m", "vLLM 1[2J", (("root", "r[2J"),))
    with pytest.raises(BenchmarkError) as caught:
        ask(serve({"/v1/models": json_reply({"error": f"no{escape}"}, 500)}))
    assert escape not in str(caught.value)


class TestSameModel:
    SERVED = Served(Api.LLAMA_SERVER, "llama-server b1", "Qwen", (("size", 5),))

    def test_name_and_facts_tell(self) -> None:
        assert self.SERVED.same_model(replace(self.SERVED, server="llama-server b2"))
        assert not self.SERVED.same_model(replace(self.SERVED, facts=(("size", 6),)))
        assert not self.SERVED.same_model(replace(self.SERVED, model="Llama"))

    def test_servers_of_two_kinds_share_the_name_alone(self) -> None:
        assert self.SERVED.same_model(Served(Api.VLLM, "vLLM 1", "Qwen", (("root", "r"),)))

    def test_a_target_is_both_sides_models_and_no_version(self) -> None:
        newer = replace(self.SERVED, server="llama-server b2")
        other = replace(self.SERVED, facts=(("size", 6),))
        digest = target_digest(self.SERVED, self.SERVED)
        assert digest == target_digest(newer, self.SERVED)
        assert digest != target_digest(self.SERVED, other)
        assert target_digest(self.SERVED, other) != target_digest(other, self.SERVED)

    def test_a_build_is_the_versions_and_the_places_too(self) -> None:
        newer = replace(self.SERVED, server="llama-server b2")
        drafting = replace(self.SERVED, draft_model="d")
        moved = ("a", "c")
        digests = {
            build_digest(self.SERVED, one, places)
            for one in (self.SERVED, newer, drafting)
            for places in (("a", "b"), moved)
        }
        assert len(digests) == 2 * 3
