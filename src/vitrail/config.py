"""Configurations: frozen dataclasses, their values checked, to JSON and back.

Every dataclass becomes an object with a `type`, its module and name below `vitrail`, so that a checkpoint carries
its whole configuration and opens without the recipe that wrote it.
"""

import dataclasses
import importlib
import math
import types
import typing
from functools import cache
from operator import ge, gt, le, lt
from pathlib import Path
from typing import Any, Literal

from vitrail.errors import VitrailError

Json = dict[str, Any] | list[Any] | str | int | float | bool | None


def check_range(
    config: Any,
    *names: str,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Checks fields that hold numbers, from the `__post_init__` of a configuration.

    A tuple is checked number by number; None stands for itself.

    Raises:
        VitrailError: a field holds a number that is not finite or out of the range, or no number, or none that is
            whole where it is declared so.
    """
    hints = _hints(config.__class__)
    limits = (("at least", ge, least), ("above", gt, above), ("below", lt, below), ("at most", le, most))
    given = [(words, holds, limit) for words, holds, limit in limits if limit is not None]
    for name in names:
        value = getattr(config, name)
        whole = not _takes_float(hints[name])
        for number in value if isinstance(value, tuple) else (value,):
            finite = isinstance(number, int if whole else int | float) and math.isfinite(number)
            if number is not None and not (finite and all(holds(number, limit) for _, holds, limit in given)):
                wanted = " and ".join(f"{words} {limit}" for words, _, limit in given if finite)
                wanted = wanted or ("a whole number" if whole else "a finite number")
                raise VitrailError(f"{type(config).__name__}.{name} is {number}; it must be {wanted}.")


def check_order(config: Any, *names: str) -> None:
    """Checks fields that hold the ends of a range, from the `__post_init__` of a configuration.

    Raises:
        VitrailError: the first end is greater than the second.
    """
    for name in names:
        least, greatest = getattr(config, name)
        if least > greatest:
            raise VitrailError(
                f"{type(config).__name__}.{name} is {least} to {greatest}; give the smaller number first."
            )


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _takes_float(hint: Any) -> bool:
    return hint is float or any(map(_takes_float, typing.get_args(hint)))


def check_choices(config: Any) -> None:
    """Checks the fields that are declared to hold one of some words, from the `__post_init__` of a configuration.

    Raises:
        VitrailError: a field holds another.
    """
    for name, hint in _hints(config.__class__).items():
        choices, value = typing.get_args(hint), getattr(config, name)
        if typing.get_origin(hint) is Literal and value not in choices:
            wanted = ", ".join(map(str, choices))
            raise VitrailError(f"{type(config).__name__}.{name} is {value}; it must be one of {wanted}.")


def to_json(value: Any) -> Json:
    """The JSON form of a configuration: dataclasses of Vitrail, lists, tuples, dicts, paths and plain values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tag = f"{type(value).__module__}.{type(value).__qualname__}"
        if not tag.startswith("vitrail."):
            raise TypeError(f"{tag} cannot be stored: a checkpoint may name only dataclasses of vitrail")
        fields = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": tag.removeprefix("vitrail.")} | fields
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a configuration cannot hold a {type(value).__name__}")


def from_json(value: Json) -> Any:
    """The configuration that `to_json` stored.

    Raises:
        VitrailError: the JSON names a type or a field that this version does not have, or lacks one that it needs.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "type" not in value:
        return {key: from_json(item) for key, item in value.items()}
    cls = _find_type(value["type"])
    known = {field.name for field in dataclasses.fields(cls)}
    given = {key: from_json(item) for key, item in value.items() if key != "type"}
    if unknown := sorted(given.keys() - known):
        raise VitrailError(
            f"The configuration sets {', '.join(unknown)} of {value['type']}, which this version of Vitrail does not "
            "have; open it with the version that wrote it."
        )
    hints = _hints(cls)
    required = {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - given.keys()):
        raise VitrailError(
            f"The configuration lacks {', '.join(missing)} of {value['type']}; open it with the version that wrote it."
        )
    return cls(**{key: _as_declared(item, hints[key]) for key, item in given.items()})


def _find_type(tag: Any) -> type:
    module, _, name = str(tag).rpartition(".")
    try:
        cls = getattr(importlib.import_module(f"vitrail.{module}"), name)
    except (ImportError, AttributeError):
        cls = None
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == f"vitrail.{module}"):
        raise VitrailError(
            f"The configuration has the type {tag}, which this version of Vitrail does not have; "
            "open it with the version that wrote it."
        )
    return cls


def _as_declared(value: Any, hint: Any) -> Any:
    """JSON has no paths, and writes 1.0 and 1 alike: the field's declaration decides."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, str) and Path in options:
        return Path(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in options and int not in options:
        return float(value)
    return value
