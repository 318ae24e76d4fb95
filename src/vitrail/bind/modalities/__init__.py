"""The senses, by name; a new one is one file here and one line in the table."""

from vitrail.bind.modalities.audio import Audio
from vitrail.bind.modalities.depth import Depth
from vitrail.bind.modalities.image import Image
from vitrail.bind.modalities.imu import Inertial
from vitrail.bind.modalities.text import Text
from vitrail.bind.modalities.thermal import Thermal
from vitrail.bind.modality import Modality

_CLASSES: tuple[type[Modality], ...] = (Image, Text, Audio, Depth, Thermal, Inertial)

MODALITIES: dict[str, type[Modality]] = {cls.name: cls for cls in _CLASSES}
