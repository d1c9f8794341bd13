"""Whether this machine runs on mains or on its battery, and who sets its clock."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from worker.probe.tool import run_tool

PMSET_LIMIT_S = 5.0
POWER_SUPPLIES = Path("/sys/class/power_supply")
CPUFREQ = Path("/sys/devices/system/cpu")

MAINS = "mains"
BATTERY = "battery"


def read_power_source() -> str | None:
    """Return "mains" or "battery", None where nothing says: most servers and virtual machines."""
    if sys.platform == "darwin":
        return parse_pmset(run_tool(("pmset", "-g", "batt"), PMSET_LIMIT_S).stdout)
    return read_power_supplies()


def parse_pmset(text: str) -> str | None:
    """Parse `pmset -g batt`; a UPS counts as a battery."""
    match = re.match(r"Now drawing from '(.+?) Power'", text)
    if not match:
        return None
    return MAINS if match[1] == "AC" else BATTERY


def read_power_supplies(supplies: Path = POWER_SUPPLIES) -> str | None:
    """Read Linux's power supplies: any mains supply that is online, else a battery in use.

    A battery of scope "Device" is a mouse's or a pen's, and says nothing about the machine.
    """
    found = [
        {name: _word(supply / name) for name in ("type", "online", "status", "scope")}
        for supply in sorted(supplies.glob("*"))
    ]
    if any(supply["type"] in ("Mains", "USB") and supply["online"] == "1" for supply in found):
        return MAINS
    batteries = [s for s in found if s["type"] == "Battery" and s["scope"] != "Device"]
    if any(battery["status"] == "Discharging" for battery in batteries):
        return BATTERY
    if any(battery["status"] in ("Charging", "Full", "Not charging") for battery in batteries):
        return MAINS
    return None


def read_cpu_governor(cpus: Path = CPUFREQ) -> str | None:
    """Return Linux's frequency governor; several at once are joined with "+", none is None."""
    files = cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")
    return "+".join(sorted({word for file in files if (word := _word(file))})) or None


def _word(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None
