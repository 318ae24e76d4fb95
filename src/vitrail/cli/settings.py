"""Models of senses, and fields of the senses said on the command line."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitrail.cli.inputs import device
from vitrail.errors import VitrailError

if TYPE_CHECKING:
    from vitrail.bind import ImageBind

SET_HELP = (
    "a field of a sense that is to be another than the model's, such as imu.acceleration=g or depth.sensor=xtion (may "
    "be given several times)"
)


def add_settings(parser: Any) -> None:
    """The option that `settings_of` reads."""
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="SENSE.FIELD=VALUE", help=SET_HELP
    )


def settings_of(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sense -> field -> value, of what is said as `imu.rate` -> `100`.

    Raises:
        VitrailError: there is no such sense or field, or it cannot have the value.
    """
    from vitrail.bind.modalities import MODALITIES
    from vitrail.bind.settings import parse_setting

    settings: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        sense, _, field = name.partition(".")
        if sense not in MODALITIES or not field:
            raise VitrailError(f"{name} is no SENSE.FIELD to set; the senses are {', '.join(MODALITIES)}.")
        settings.setdefault(sense, {})[field] = parse_setting(MODALITIES[sense], field, value)
    return settings


def said_settings(given: list[str]) -> dict[str, str]:
    """What --set says: `imu.rate` -> `100`.

    Raises:
        VitrailError: one of them has no "=".
    """
    for one in given:
        if "=" not in one:
            raise VitrailError(f"--set {one} is not SENSE.FIELD=VALUE, such as imu.rate=100.")
    return {name: value for name, _, value in (one.partition("=") for one in given)}


def load_bind(
    arguments: argparse.Namespace, settings: dict[str, dict[str, Any]], senses: list[str] | None = None
) -> "ImageBind":
    """The model that --model names, its senses or some of them, with settings."""
    from vitrail.bind import ImageBind

    model = ImageBind.load(arguments.model, modalities=senses, device=device(arguments.device), settings=settings)
    if senses is None:
        for sense in settings:
            model.modality(sense)
    return model
