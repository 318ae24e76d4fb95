"""Makes the demo's photos, src/vitrail/demo/photos, from the Grocery Store Dataset.

    python benchmarks/make_demo_photos.py FOLDER

FOLDER is the `dataset` folder of marcusklasson/GroceryStoreDataset: train.txt and test.txt with lines of a path, a
fine and a coarse label. Of each chosen coarse class, photos are taken at equal steps through the list, so that shops
and days are mixed; training photos come from train.txt and test photos from test.txt, which never share a photo.
"""

import argparse
import shutil
from pathlib import Path

from PIL import Image, ImageOps

CLASSES = {1: "avocado", 2: "banana", 4: "lemon", 12: "peach", 20: "milk", 31: "carrot", 36: "mushroom", 39: "potato"}
CLASSES |= {41: "tomato", 42: "zucchini"}
SHORT_SIDE = 112
QUALITY = 65
MOST = {"train": 48, "test": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    source: Path = parser.parse_args().folder
    target = Path(__file__).parents[1] / "src" / "vitrail" / "demo" / "photos"
    for part, most in MOST.items():
        shutil.rmtree(target / part, ignore_errors=True)
        rows = [line.split(",") for line in (source / f"{part}.txt").read_text().splitlines() if line]
        for label, name in CLASSES.items():
            paths = [source / row[0].strip() for row in rows if int(row[2]) == label]
            count = min(most, len(paths))
            for number in range(count):
                write(paths[number * len(paths) // count], target / part / name / f"{number:02}.webp")
    files = list(target.rglob("*.webp"))
    print(f"{len(files)} photos, {sum(file.stat().st_size for file in files) / 1e6:.2f} MB in {target}")


def write(source: Path, target: Path) -> None:
    """The photo at `source`, upright and with a short side of SHORT_SIDE pixels, as a WebP at `target`."""
    with Image.open(source) as image:
        photo = ImageOps.exif_transpose(image).convert("RGB")
    scale = SHORT_SIDE / min(photo.size)
    target.parent.mkdir(parents=True, exist_ok=True)
    size = round(photo.width * scale), round(photo.height * scale)
    photo.resize(size, Image.Resampling.LANCZOS).save(target, quality=QUALITY, method=6)


if __name__ == "__main__":
    main()
