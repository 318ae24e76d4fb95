"""`vitrail pretrain`: what networks have learned without labels."""

import argparse
from pathlib import Path
from typing import Any

from vitrail.cli.inputs import add_device, device, positive, print_table
from vitrail.errors import VitrailError
from vitrail.tables import is_whole


def add_verbs(verbs: Any) -> None:
    """Adds the verbs of this file to the command line."""
    pretrain = verbs.add_parser("pretrain", help="probe and look into networks that learned without labels")
    jobs = pretrain.add_subparsers(dest="job", metavar="JOB", required=True)

    probe = jobs.add_parser("probe", help="linear probes of layers, and nearest neighbours")
    probe.add_argument("models", nargs="+", metavar="CHECKPOINT", help="checkpoints, run folders or published names")
    probe.add_argument("--data", required=True, metavar="TRAIN", help="labelled images: class folders, a list, tars")
    probe.add_argument("--validation", required=True, metavar="TEST", help="labelled images to test on, of that kind")
    probe.add_argument("--list", metavar="FILE", help="a list of paths relative to TRAIN, with labels")
    probe.add_argument("--validation-list", metavar="FILE", help="a list of paths relative to TEST, with labels")
    probe.add_argument("--label-column", type=positive, default=1, metavar="N", help="the lists' column of the label")
    probe.add_argument("--layers", metavar="N,N,... | all", default="", help="numbers of layers, from 0, or all")
    probe.add_argument(
        "--knn", type=positive, metavar="K", nargs="?", const=20, help="nearest neighbours (default: 20)"
    )
    probe.add_argument("--penalty", type=float, default=1e-3, help="of the squares of the weights (default: 0.001)")
    probe.add_argument("--plot", metavar="FILE.png", help="draw accuracy against the layer")
    probe.add_argument("--size", type=positive, help="resize pictures to so many pixels a side (default: the model's)")
    probe.add_argument("--batch-size", type=positive, default=64, metavar="N", help="pictures at once (default: 64)")
    add_device(probe)
    probe.set_defaults(run=run_probe)

    show = jobs.add_parser("show", help="draw what a SplitMask or BEiT sees and how it fills the missing patches")
    show.add_argument("model", metavar="CHECKPOINT", help="a checkpoint or the folder of a run")
    show.add_argument("image", metavar="IMAGE")
    show.add_argument("-o", "--output", required=True, metavar="FILE.png", help="the picture to write")
    show.add_argument("--seed", type=int, default=0, help="another mask (default: 0)")
    show.set_defaults(run=run_show)

    tokenizer = jobs.add_parser("tokenizer", help="write a codec's indices, or DALL-E's, as a tokenizer")
    tokenizer.add_argument(
        "model",
        metavar="CODEC | encoder.pkl",
        help="a run of an autoencoder with one sub-vector a token, or DALL-E's encoder",
    )
    tokenizer.add_argument("-o", "--output", required=True, metavar="FILE.pt2", help="the program to write")
    tokenizer.add_argument(
        "--size", type=positive, default=224, help="pixels a side of the pictures it is for (default: 224)"
    )
    tokenizer.set_defaults(run=run_tokenizer)


def run_probe(arguments: argparse.Namespace) -> int:
    """`vitrail pretrain probe`."""
    from dataclasses import replace

    from vitrail.data.datasets import ImageData
    from vitrail.plots import check_figure
    from vitrail.pretrain.probe import OUTPUT, check_penalty, extract, plot_layers, probe
    from vitrail.weights import open_network

    check_penalty(arguments.penalty)
    if arguments.plot:
        check_figure(arguments.plot)
    place, optional = device(arguments.device), lambda path: Path(path) if path else None
    curves, rows = {}, []
    for name in arguments.models:
        network = open_network(name)
        backbone, transform = network.model, network.transform
        transform = replace(transform, size=arguments.size) if arguments.size else transform
        layers = _layers(arguments.layers, getattr(backbone.config, "depth", 4))
        train = ImageData(Path(arguments.data), optional(arguments.list), arguments.label_column)
        train_images = train.open(transform.build())
        test = ImageData(Path(arguments.validation), optional(arguments.validation_list), arguments.label_column)
        test_images = test.open(transform.build(), train_images.classes)
        backbone.to(place).eval()
        known, unknown = (
            extract(backbone, images, layers, arguments.batch_size, place) for images in (train_images, test_images)
        )
        found = probe(known, unknown, arguments.penalty, arguments.knn)
        curves[name] = found.linear
        rows += [
            (name, f"linear, {'output' if layer == OUTPUT else f'layer {layer}'}", f"{100 * accuracy:.1f}")
            for layer, accuracy in found.linear.items()
        ]
        if found.neighbours is not None:
            voting = min(arguments.knn, len(known.labels))
            rows.append((name, f"{voting} nearest neighbours", f"{100 * found.neighbours:.1f}"))
    print_table(("network", "probe", "accuracy (%)"), rows)
    if arguments.plot:
        plot_layers(curves, arguments.plot)
        print(f"Wrote {arguments.plot}")
    return 0


def _layers(text: str, count: int) -> list[int]:
    if text == "all":
        return list(range(count))
    parts = [part for part in text.split(",") if part]
    if not all(is_whole(part.strip()) for part in parts):
        raise VitrailError(f"--layers is {text!r}; give numbers between commas, as 0,3,11, or all.")
    return [int(part) for part in parts]


def run_show(arguments: argparse.Namespace) -> int:
    """`vitrail pretrain show`."""
    from vitrail.engine.checkpoint import open_task
    from vitrail.pretrain.pretraining import MaskedTask
    from vitrail.pretrain.show import show

    experiment, task = open_task(arguments.model)
    if not isinstance(task, MaskedTask):
        kind = type(experiment).__name__
        raise VitrailError(f"{arguments.model} is a {kind} and hides no patches; take a run of SplitMask or BEiT.")
    if arguments.seed < 0:
        raise VitrailError(f"--seed is {arguments.seed}; it must be 0 or more.")
    show(task, experiment.masks, experiment.eval_transform, Path(arguments.image), arguments.output, arguments.seed)
    print(f"Wrote {arguments.output}")
    return 0


def run_tokenizer(arguments: argparse.Namespace) -> int:
    """`vitrail pretrain tokenizer`."""
    from vitrail.weights.tokenizer import export_tokenizer

    words, patch_size = export_tokenizer(arguments.model, arguments.output, arguments.size)
    print(f"Wrote {arguments.output}: use it with --tokenizer.kind program --tokenizer.program {arguments.output}")
    print(f"--tokenizer.words {words} --tokenizer.patch-size {patch_size}")
    return 0
