"""What a sweep over endpoints may say, and what its jobs are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from endpoint_stand_in import json_reply, stand_in

from farm.domain.decoding import SpeculationKind
from farm.endpoints.register import Endpoint, add
from farm.errors import UserError
from farm.services.plan import Plan, plan_sweep

SWEEP = """\
name: x
engine: endpoint
pairs: [{{baseline: {baseline}, speculative: {speculative}{same}}}]
prompts: {{categories: [chat], per_category: 2}}
{more}
"""

Planner = Callable[..., Plan]


@pytest.fixture
def planned(farm_home: Path, sweep_file: Callable[[str], Path]) -> Iterator[Planner]:
    """Return a planner; "a" and "b" serve one model, "c" another."""
    with ExitStack() as stack:
        for name, model in (("a", "m"), ("b", "m"), ("c", "n")):
            replies = {"/v1/models": json_reply({"data": [{"id": model}]})}
            add(Endpoint(name, stack.enter_context(stand_in(replies)).url))

        def plan(
            baseline: str = "a", speculative: str = "b", same: str = "", more: str = ""
        ) -> Plan:
            text = SWEEP.format(baseline=baseline, speculative=speculative, same=same, more=more)
            return plan_sweep(sweep_file(text))

        yield plan


def test_a_pair_is_a_job_per_content_and_way_to_draw(planned: Planner) -> None:
    plan = planned(more="temperatures: [0.0, 0.7]\nseeds: [1, 2]")
    assert [(job.sampling.temperature, job.sampling.seed) for job in plan.jobs] == [
        (0.0, 0),
        (0.7, 1),
        (0.7, 2),
    ]
    job = plan.jobs[0]
    assert (job.build, job.engine, job.draft) == ("endpoint==a+b", "endpoint", None)
    assert (job.speculation.kind, job.speculation.n_max) == (SpeculationKind.AS_SERVED, 0)
    assert job.speculation.k_text == "-"
    assert (job.target.name, job.target.path) == ("m", "a")
    assert len({job.pair_key for job in plan.jobs}) == 1


def test_a_plan_is_the_same_when_it_is_made_again(planned: Planner) -> None:
    assert [job.key for job in planned().jobs] == [job.key for job in planned().jobs]
    assert planned().jobs[0].key != planned("b", "a").jobs[0].key


def test_its_model_takes_no_memory_here(planned: Planner) -> None:
    plan = planned()
    (model,) = plan.models.values()
    assert (model.architecture, model.size_bytes, model.is_calibration) == ("served", None, False)
    assert set(plan.need_bytes.values()) == {0}


def test_two_models_are_refused_unless_the_user_says_they_are_one(planned: Planner) -> None:
    with pytest.raises(UserError, match=r"a serves m and c n: .*same_model: true"):
        planned("a", "c")
    (job,) = planned("a", "c", same=", same_model: true").jobs
    assert job.target.name == "m"
    assert job.target.digest != planned("a", "b").jobs[0].target.digest


@pytest.mark.parametrize(
    ("key", "value"),
    [("k", "4"), ("threads", "2"), ("cache_type_k", "q8_0"), ("p_min", "0.5"), ("build", "x")],
)
def test_what_an_endpoint_cannot_be_told_is_refused(planned: Planner, key: str, value: str) -> None:
    with pytest.raises(UserError, match=f":5:1: an endpoint can't be told '{key}'") as caught:
        planned(more=f"{key}: {value}")
    assert "generate_tokens" in str(caught.value)


@pytest.mark.parametrize(
    ("baseline", "speculative", "message"),
    [("a", "a", "one endpoint; name two"), ("a", "zz", "No endpoint 'zz' is registered")],
)
def test_a_pair_that_is_none_is_refused(
    planned: Planner, baseline: str, speculative: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        planned(baseline, speculative)


def test_files_have_no_place_in_it(planned: Planner, sweep_file: Callable[[str], Path]) -> None:
    path = sweep_file("name: x\nengine: endpoint\npairs: [{target: a.gguf}]\n")
    with pytest.raises(UserError, match="'target'; allowed are baseline, same_model, speculative"):
        plan_sweep(path)


def test_an_engine_that_is_none_names_them_all(sweep_file: Callable[[str], Path]) -> None:
    path = sweep_file("name: x\nengine: vllm\npairs: [{target: a.gguf}]\nk: 4\n")
    with pytest.raises(UserError, match="'in-process', 'llama-server' or 'endpoint'"):
        plan_sweep(path)
