"""What classes are called, and the prompts that their names are put into (Sections 6.4.1.1 and 6.4.6)."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from vitrail.errors import FileError, VitrailError

IMAGENET_TEMPLATES = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)
"""CLIP's 80 prompts for ImageNet; the thesis takes them for every sense, sounds and motion too."""

NYU_D: dict[str, tuple[str, ...]] = {
    "bathroom": ("bathroom",),
    "bedroom": ("bedroom",),
    "bookstore": ("bookstore",),
    "classroom": ("classroom",),
    "dining room": ("dining room",),
    "home office": ("home office",),
    "kitchen": ("kitchen",),
    "living room": ("living room",),
    "office": ("office",),
    "other": (
        "basement",
        "cafe",
        "computer lab",
        "conference room",
        "dinette",
        "exercise room",
        "foyer",
        "furniture store",
        "home storage",
        "indoor balcony",
        "laundry room",
        "office kitchen",
        "playroom",
        "printer room",
        "reception room",
        "student lounge",
        "study",
        "study room",
    ),
}
"""The ten scenes of NYU-v2, by their names; the last goes by 18, of which the nearest counts."""

LLVIP: dict[str, tuple[str, ...]] = {
    "person": ("person", "man", "woman", "people"),
    "background": ("street", "road", "car", "light", "tree"),
}
"""The two classes of LLVIP's boxes, by their names."""

SUN_D: dict[str, tuple[str, ...]] = {
    name: (name,)
    for name in (
        "bathroom",
        "bedroom",
        "classroom",
        "computer room",
        "conference room",
        "corridor",
        "dining area",
        "dining room",
        "discussion area",
        "furniture store",
        "home office",
        "kitchen",
        "lab",
        "lecture theatre",
        "library",
        "living room",
        "office",
        "rest space",
        "study space",
    )
}
"""The 19 scenes of SUN RGB-D that have enough pictures, by their names."""


def parse_classes(lines: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Classes as people write them, to class -> its names.

    Args:
        lines: a class each: `dog`; `person|man|woman`, of whose names the nearest counts and the first is the class's;
            `other=basement|cafe`, a class called otherwise than by its names. Empty ones are left aside.

    Raises:
        VitrailError: a class comes twice, or a name is empty.
    """
    classes: dict[str, tuple[str, ...]] = {}
    for line in filter(None, map(str.strip, lines)):
        title, equals, rest = line.partition("=")
        names = tuple(name.strip() for name in (rest if equals else line).split("|"))
        title = title.strip() if equals else names[0]
        if not title or not all(names):
            raise VitrailError(f"{line!r} is no class; write name, name|other name, or class=name|other name.")
        if title in classes:
            raise VitrailError(f"The class {title!r} comes twice; put all its names on one line, name|other name.")
        classes[title] = names
    return classes


def read_classes(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Classes from the words of a command: themselves, or the lines of the one text file that they name.

    Raises:
        FileError: there is no such file, it cannot be read, or has no class.
        VitrailError: as `parse_classes`.
    """
    if len(words) != 1 or not words[0].endswith(".txt"):
        return parse_classes(words)
    try:
        lines = Path(words[0]).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise FileError(f"Cannot read the classes in {words[0]}: {reason}; give a text file, a class a line.") from None
    classes = parse_classes(lines)
    if not classes:
        raise FileError(f"There is no class in {words[0]}; write one a line.")
    return classes
