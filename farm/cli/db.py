"""farm db: the database's tables."""

from __future__ import annotations

import typer

from farm.cli.session import JsonOption, out, print_json
from farm.config import load
from farm.errors import InfrastructureError
from farm.store.database import open_database
from farm.store.migrate import differences, require_head, upgrade

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The database's tables.")


@app.command("upgrade")
def upgrade_command(as_json: JsonOption = False) -> None:
    """Migrate the database to this farm's tables; harmless when it is there already."""
    before, after = upgrade(open_database(load().database_url))
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        out.print(f"The database is at migration {after} already.")
    else:
        out.print(f"The database went from {before or 'empty'} to migration {after}.")


@app.command("check")
def check_command(as_json: JsonOption = False) -> None:
    """Check that the database is at this farm's migration and its tables are as declared."""
    engine = open_database(load().database_url)
    require_head(engine)
    found = differences(engine)
    if as_json:
        print_json({"differences": found})
    if found:
        raise InfrastructureError(
            f"The database's tables differ from this farm's in {len(found)} places, first: "
            f"{found[0]}. Restore a backup, or move the database away and run 'farm db upgrade'."
        )
    if not as_json:
        out.print("The database is as this farm expects it.")
