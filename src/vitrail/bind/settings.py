"""Fields of senses said in words: in columns of tables, and on the command line."""

import types
import typing
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Literal

from vitrail.bind.modality import Modality
from vitrail.errors import VitrailError

_TRUTH = {"true": True, "false": False}


def parse_setting(sense: type[Modality], field: str, text: str) -> Any:
    """The value of a field of a sense.

    Args:
        sense: one of `vitrail.bind.modalities.MODALITIES`.
        field: such as "sensor".
        text: a number, true or false, one of the field's choices, none where it may be None, or several with commas
            between.

    Raises:
        VitrailError: there is no such field, or it cannot have the value.
    """
    known = {known.name for known in fields(sense)}
    if field not in known:
        raise VitrailError(f"{sense.name} has no field {field!r}; choose among {', '.join(sorted(known))}.")
    hint = typing.get_type_hints(sense)[field]
    try:
        return _parse(hint, text.strip())
    except ValueError:
        pass
    choices = [
        choice for kind in _kinds(hint) if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)
    ]
    wanted = f"one of {', '.join(map(str, choices))}" if choices else "a number"
    wanted += " or a number" if choices and not {int, float}.isdisjoint(_kinds(hint)) else ""
    if any(typing.get_origin(kind) is tuple for kind in _kinds(hint)):
        wanted = "values with commas between, as many as it has"
    raise VitrailError(f"{sense.name}.{field} is {text!r}; it must be {wanted}.")


def with_settings(modality: Modality, said: Mapping[str, str]) -> Modality:
    """A sense, some of whose fields have other values.

    Raises:
        VitrailError: there is no such field, or it cannot have the value.
    """
    return replace(modality, **{field: parse_setting(type(modality), field, text) for field, text in said.items()})


def _kinds(hint: Any) -> tuple[Any, ...]:
    return (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )


def _parse(hint: Any, text: str) -> Any:
    kinds = _kinds(hint)
    for kind in kinds:
        options = (
            {str(choice): choice for choice in typing.get_args(kind)} if typing.get_origin(kind) is Literal else {}
        )
        if kind is type(None):
            options = {"none": None}
        elif kind is bool:
            options = _TRUTH
        if text in options:
            return options[text]
        if typing.get_origin(kind) is tuple and text not in ("", "none"):
            each = typing.get_args(kind)
            parts = text.split(",")
            if each[-1] is not Ellipsis and len(each) != len(parts):
                raise ValueError(text)
            return tuple(_parse(each[0], part.strip()) for part in parts)
    if int in kinds and float(text).is_integer():
        return int(float(text))
    if float in kinds:
        return float(text)
    if str in kinds:
        return text
    raise ValueError(text)
