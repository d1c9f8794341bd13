"""Telling the farm that this machine is here and what it can run."""

from __future__ import annotations

import os
from dataclasses import asdict

from sqlalchemy import Engine, select

from farm.domain.hardware import Machine
from farm.queue.routing import selectors_of
from farm.store.clock import now
from farm.store.database import writing
from farm.store.insert import insert_missing
from farm.store.jobs import Claimer
from farm.store.schema import HardwareProfileRow, MachineRow
from worker.engines.registry import ENGINES


def register(engine: Engine, machine: Machine) -> Claimer:
    """Insert or refresh the machine's rows and return what this worker claims with.

    A machine is its name; new hardware under an old name moves the name to the new profile.
    """
    engines = sorted(name for name, factory in ENGINES.items() if factory.builds())
    builds = sorted({build for factory in ENGINES.values() for build in factory.builds()})
    hardware = machine.hardware
    with writing(engine) as session:
        profile = {
            "key": hardware.key,
            "kind": hardware.kind,
            "label": hardware.label,
            "facts": asdict(hardware),
        }
        insert_missing(session, HardwareProfileRow, [profile])
        seen_at = session.scalars(select(now())).one()
        row = session.scalars(
            select(MachineRow).where(MachineRow.name == machine.name)
        ).one_or_none()
        if row is None:
            row = MachineRow(name=machine.name, first_seen_at=seen_at)
            session.add(row)
        row.hardware_key = hardware.key
        row.engines = list(engines)
        row.builds = list(builds)
        row.last_seen_at = seen_at
        session.flush()
        return Claimer(
            machine_id=row.id,
            worker=f"{machine.name}:{os.getpid()}",
            selectors=selectors_of(machine),
            engines=tuple(engines),
            builds=tuple(builds),
            machine=machine,
        )
