"""Pairs of senses from small public data sets, as files and tables that training reads.

    python benchmarks/bind_pairs.py digits --data DATA --output digits
    python benchmarks/bind_pairs.py actions --data DATA --output actions
    python benchmarks/bind_pairs.py roadscene --data DATA --output roadscene
    python benchmarks/bind_pairs.py scenes --data DATA --output scenes
    python benchmarks/bind_pairs.py sunrgbd --data SUN --output sunrgbd

digits   MNIST's pictures with the digit's name, and the Free Spoken Digit Dataset's sounds with a picture of the same
         digit; the sounds of two of its six speakers are kept for the test (`--fold` says which)
actions  UTD-MHAD's depth with the action's name, and with the motion of the same recording; subjects of even number are
         kept for the test
roadscene
         RoadScene's pictures of roads in colour and in heat; every fourth is kept for the test
scenes   one of 7-Scenes' recordings of a room, in colour and in depth; of eight stretches of time the fourth and the
         last are kept for the test, since frames that follow each other look nearly the same

sunrgbd  the training part of SUN RGB-D, with each map's sensor and focal length; SUN is the folder as published

DATA holds `mnist/{train,test}.npz` (images, labels), `fsdd/DIGIT_SPEAKER_TAKE.flac`,
`utd-mhad/{depth,inertial}.npz` (an array for each recording, a<action>_s<subject>_t<trial>),
`roadscene/{visible,thermal}/` (pictures of the same names), and `rgbd-7scenes/frame-NUMBER.{color.jpg,depth.png}`. What
is random follows `--seed`.
"""

import argparse
import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vitrail.bind.evaluation.layouts import sun_rgbd_scenes

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACTIONS = (
    *("swipe left", "swipe right", "wave", "clap", "throw", "arms crossed", "basketball shoot", "draw x"),
    *("draw circle clockwise", "draw circle counter-clockwise", "draw triangle", "bowling", "boxing"),
    *("baseball swing", "tennis swing", "arm curl", "tennis serve", "push", "knock", "catch", "pickup and throw"),
    *("jog", "walk", "sit to stand", "stand to sit", "lunge", "squat"),
)


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def digits(data: Path, output: Path, seed: int, fold: int, most: int | None) -> None:
    """Writes train and test of image_text, image_audio and audio_text (the last for evaluation alone)."""
    random = np.random.default_rng(seed)
    sounds = [(path, *path.stem.split("_")[:2]) for path in sorted((data / "fsdd").glob("*.flac"))]
    speakers = sorted({speaker for _, _, speaker in sounds})
    held_out = speakers[2 * fold : 2 * fold + 2]
    for part in ("train", "test"):
        archive = np.load(data / "mnist" / f"{part}.npz")
        images, labels = archive["images"][:most], archive["labels"][:most]
        folder = output / f"{part}_images"
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"{folder.name}/{number:05}.png" for number in range(len(images))]
        for name, image in zip(names, images, strict=True):
            Image.fromarray(image).save(output / name)
        words = [DIGITS[label] for label in labels]
        write_table(output / f"{part}_image_text.csv", ("image", "text"), zip(names, words, strict=True))
        chosen = [
            (path.resolve(), int(digit)) for path, digit, speaker in sounds if (speaker in held_out) == (part == "test")
        ]
        # Each sound meets another picture of its digit each of ten times, so that it is not bound to one handwriting.
        alike = [(names[random.choice(np.flatnonzero(labels == digit))], path) for path, digit in chosen * 10]
        write_table(output / f"{part}_image_audio.csv", ("image", "audio"), alike)
        spoken = [(path, DIGITS[digit]) for path, digit in chosen]
        write_table(output / f"{part}_audio_text.csv", ("audio", "text"), spoken)
    print(f"{output}: sounds of {' and '.join(held_out)} are for the test")


def actions(data: Path, output: Path) -> None:
    """Writes train and test of depth_text, depth_imu and imu_text (the last for evaluation alone)."""
    depth, motion = (np.load(data / "utd-mhad" / f"{name}.npz") for name in ("depth", "inertial"))
    rows: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    output.mkdir(parents=True, exist_ok=True)
    for name in sorted(set(depth.files) & set(motion.files)):
        action, subject = (int(number) for number in re.findall(r"\d+", name)[:2])
        np.savez(output / f"{name}.npz", data=motion[name], rate=50)
        for number, frame in enumerate(depth[name]):
            # The background is cut out (0); it would be filled in from the body, so it is put 8 m away.
            Image.fromarray(np.where(frame, frame, 8000).astype(np.uint16)).save(output / f"{name}_{number}.png")
            row = (f"{name}_{number}.png", f"{name}.npz", ACTIONS[action - 1])
            rows["train" if subject % 2 else "test"].append(row)
    for part, found in rows.items():
        write_table(output / f"{part}.csv", ("depth", "imu", "text"), found)
    print(f"{output}: {len(rows['train'])} depth frames to train with, {len(rows['test'])} for the test")


def roadscene(data: Path, output: Path) -> None:
    """Writes train and test of image_thermal."""
    pictures = sorted((data / "roadscene" / "visible").resolve().iterdir())
    heat = (data / "roadscene" / "thermal").resolve()
    rows = [(picture, heat / picture.name) for picture in pictures]
    write_parts(output, ("image", "thermal"), rows, [number % 4 == 3 for number in range(len(rows))])


def scenes(data: Path, output: Path) -> None:
    """Writes train and test of image_depth."""
    pictures = sorted((data / "rgbd-7scenes").resolve().glob("*.color.jpg"))
    rows = [(picture, picture.with_name(picture.name.replace("color.jpg", "depth.png"))) for picture in pictures]
    write_parts(output, ("image", "depth"), rows, [8 * number // len(rows) in (3, 7) for number in range(len(rows))])


def sunrgbd(data: Path, output: Path) -> None:
    """Writes train of image_depth."""
    rows = []
    for item in sun_rgbd_scenes(data.resolve(), "alltrain"):
        (picture,) = item.path.parents[1].glob("image/*.jpg")
        depth = item.settings["depth"]
        rows.append((picture, item.path, depth["sensor"], depth["focal_length"]))
    write_table(output / "train.csv", ("image", "depth", "depth.sensor", "depth.focal_length"), rows)
    print(f"{output}/train.csv: {len(rows)} pairs")


def write_parts(output: Path, header: Sequence[str], rows: Sequence[Sequence[object]], held_out: list[bool]) -> None:
    """Writes train.csv and test.csv."""
    for part, wanted in (("train", False), ("test", True)):
        chosen = [row for row, is_test in zip(rows, held_out, strict=True) if is_test == wanted]
        write_table(output / f"{part}.csv", header, chosen)
        print(f"{output}/{part}.csv: {len(chosen)} pairs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits", "actions", "roadscene", "scenes", "sunrgbd"))
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fold", type=int, default=0, choices=(0, 1, 2), help="which two speakers are held out")
    parser.add_argument("--most", type=int, help="pictures of digits in each part, instead of all")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.what == "digits":
        digits(arguments.data, arguments.output, arguments.seed, arguments.fold, arguments.most)
    else:
        writers = {"actions": actions, "roadscene": roadscene, "scenes": scenes, "sunrgbd": sunrgbd}
        writers[arguments.what](arguments.data, arguments.output)


if __name__ == "__main__":
    main()
