"""Fields of senses, said in words."""

import pytest

from vitrail.bind.modalities import MODALITIES
from vitrail.bind.modalities.imu import Inertial
from vitrail.bind.settings import parse_setting, with_settings
from vitrail.errors import VitrailError


@pytest.mark.parametrize(
    ("sense", "field", "text", "value"),
    [
        ("audio", "clips", "cover", "cover"),
        ("audio", "clips", "5", 5),
        ("audio", "clips", "5.0", 5),  # as tables write whole numbers beside empty cells
        ("image", "crops", "3", 3),
        ("depth", "sensor", " xtion ", "xtion"),
        ("depth", "focal_length", "570", 570.0),
        ("depth", "focal_length", "none", None),
        ("imu", "acceleration", "m/s^2", "m/s^2"),
        ("imu", "rate", "1e2", 100.0),
        ("imu", "columns", "ax, ay,az,gx,gy,gz", ("ax", "ay", "az", "gx", "gy", "gz")),
        ("image", "scale", "0.5,1", (0.5, 1.0)),
        ("imu", "time_column", "t", "t"),
        ("text", "learned_temperature", "false", False),
    ],
)
def test_values(sense, field, text, value):
    found = parse_setting(MODALITIES[sense], field, text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("sense", "field", "text", "sentence"),
    [
        ("imu", "unit", "g", r"^imu has no field 'unit'; choose among acceleration, activation, columns, "),
        ("imu", "acceleration", "G", r"^imu\.acceleration is 'G'; it must be one of m/s\^2, g\.$"),
        ("audio", "clips", "all", r"^audio\.clips is 'all'; it must be one of cover or a number\.$"),
        ("audio", "clips", "2.5", r"^audio\.clips is '2.5'; it must be one of cover or a number\.$"),
        ("imu", "rate", "fast", r"^imu\.rate is 'fast'; it must be a number\.$"),
        ("image", "scale", "1", r"^image\.scale is '1'; it must be values with commas between, as many as it has\.$"),
    ],
)
def test_what_cannot_be(sense, field, text, sentence):
    with pytest.raises(VitrailError, match=sentence):
        parse_setting(MODALITIES[sense], field, text)


def test_a_sense_with_settings():
    assert with_settings(Inertial(), {"rate": "50", "rotation": "deg/s"}) == Inertial(rate=50.0, rotation="deg/s")
    with pytest.raises(VitrailError, match=r"Inertial\.rate is -1\.0; it must be above 0"):
        with_settings(Inertial(), {"rate": "-1"})
