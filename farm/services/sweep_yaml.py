"""YAML whose errors have a place: file, line and column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from farm.errors import UserError


def parse(path: Path, text: str) -> tuple[yaml.Node, Any]:
    """Return the sweep's YAML nodes, which know their lines, and its content."""
    root = None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise UserError(
                f"{path}:1:1: a sweep is a mapping of keys; 'farm submit --example' prints one."
            )
        _refuse_repeated_keys(path, root)
        return root, yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply for a sweep.") from None
    except (ValueError, OverflowError) as error:
        # A date that no calendar has, a number of thousands of digits, an escape beyond Unicode.
        raise UserError(f"{_where_unreadable(path, root)}: not valid YAML: {error}.") from None


def mark_of(node: yaml.Node, steps: Sequence[Any], *, of_key: bool = False) -> yaml.Mark:
    """Return where the node at `steps` starts, or the deepest one above it that the file has."""
    mark = node.start_mark
    for step in steps:
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == str(step)), None)
            if found is None:
                break
            key_node, node = found
            mark = key_node.start_mark if of_key else node.start_mark
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            if step >= len(node.value):
                break
            node = node.value[step]
            mark = node.start_mark
        else:
            break
    return mark


def _where_unreadable(path: Path, root: yaml.Node | None) -> str:
    """Return file, line and column of the scalar that Python's types can't hold, if known."""
    waiting = [root] if root else []
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
        else:
            try:
                yaml.SafeLoader("").construct_object(node)
            except ValueError:
                return f"{path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
    return str(path)


def _refuse_repeated_keys(path: Path, node: yaml.Node, above: tuple[yaml.Node, ...] = ()) -> None:
    if any(node is one for one in above):
        mark = node.start_mark
        raise UserError(
            f"{path}:{mark.line + 1}:{mark.column + 1}: an alias inside its own anchor."
        )
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                mark = key.start_mark
                raise UserError(
                    f"{path}:{mark.line + 1}:{mark.column + 1}: the key '{key.value}' is there "
                    "twice; keep one.\nNothing was submitted."
                )
            seen.add(key.value)
            _refuse_repeated_keys(path, value, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_repeated_keys(path, value, (*above, node))
