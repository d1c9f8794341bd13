"""`farm endpoints`: servers that run already, for the engine of that name."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from farm.cli.session import JsonOption, out, print_json
from farm.domain.decoding import Sampling
from farm.endpoints import register
from farm.endpoints.register import Api, Endpoint
from farm.endpoints.served import ask
from worker.engines.remote import Remote
from worker.engines.waiting import result_of

TRIAL_TEXT = "The quick brown fox jumps over the lazy dog. The quick brown fox"
TRIAL_TOKENS = 32
TRIAL_LIMIT_S = 120.0

app = typer.Typer(
    name="endpoints",
    no_args_is_help=True,
    add_completion=False,
    help="Name servers that run already, so that sweeps can compare two of them.",
)

NameArgument = Annotated[str, typer.Argument(help="What sweeps call it.")]


@app.command()
def add(
    name: NameArgument,
    url: Annotated[str, typer.Argument(help="Its address, such as http://localhost:8000.")],
    model: Annotated[
        str | None, typer.Option(help="Its model's id there; needed where it lists several.")
    ] = None,
    draft_model: Annotated[
        str | None, typer.Option(help="LM Studio only: the draft to ask for with each request.")
    ] = None,
    api: Annotated[
        Api | None, typer.Option(help="What it speaks; found out by asking when left out.")
    ] = None,
    key_env: Annotated[
        str | None, typer.Option(help="The environment variable that holds its key.")
    ] = None,
    remote: Annotated[
        bool, typer.Option("--remote", help="Prompts may leave for an address outside.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Register a server by name on this machine; an earlier one of that name is replaced.

    Jobs carry names alone: register it on each machine that is to measure it, and where sweeps are
    submitted. Keys are never stored, only the name of the variable that holds one.
    """
    _show([register.add(Endpoint(name, url, model, draft_model, api, key_env, remote))], as_json)


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the endpoints of this machine."""
    _show(register.registered(), as_json)


@app.command()
def remove(name: NameArgument) -> None:
    """Forget an endpoint. Its server runs on."""
    register.remove(name)
    out.print(f"The endpoint {name} is no longer registered here.")


@app.command()
def check(name: NameArgument, as_json: JsonOption = False) -> None:
    """Ask a server what it is, have it generate a few tokens, and say what it reports."""
    endpoint = register.find(name)
    served = ask(endpoint)
    answer = result_of(
        Remote(endpoint, served).complete(
            TRIAL_TEXT,
            TRIAL_TOKENS,
            Sampling(0.0, 0),
            0,
            time.monotonic() + TRIAL_LIMIT_S,
            alternatives=2,
            counted=True,
        )
    )
    drafts = answer.drafts
    facts: dict[str, Any] = {
        "server": served.server,
        "api": served.api.value,
        "model": served.model,
        **dict(served.facts),
        "generated_tokens": answer.generated_tokens,
        "first_token_ms": answer.prompt_ms,
        "drafted": drafts.drafted if drafts else None,
        "accepted": drafts.accepted if drafts else None,
        "rounds": drafts.rounds if drafts else None,
        "token_ids": answer.ids is not None,
        "margins": any(len(token.best) == 2 for token in answer.tokens),
    }
    if as_json:
        print_json({"name": name, "url": endpoint.url} | facts)
        return
    table = Table(show_header=False)
    for fact, value in facts.items():
        table.add_row(fact.replace("_", " "), escape(_text(value)))
    out.print(table)


def _text(value: Any) -> str:
    if value is None:
        return "not reported"
    if isinstance(value, bool):
        return "reported" if value else "not reported"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _show(endpoints: list[Endpoint], as_json: bool) -> None:
    if as_json:
        print_json([asdict(endpoint) for endpoint in endpoints])
        return
    if not endpoints:
        out.print("No endpoint is registered here; 'farm endpoints add NAME URL' does.")
        return
    table = Table("name", "url", "model", "draft model", "api", "key in", "may be remote")
    for endpoint in endpoints:
        table.add_row(
            endpoint.name,
            escape(endpoint.url),
            escape(endpoint.model or "its only one"),
            escape(endpoint.draft_model or "-"),
            endpoint.api or "found out by asking",
            endpoint.key_variable or "-",
            "yes" if endpoint.remote else "no",
        )
    out.print(table)
