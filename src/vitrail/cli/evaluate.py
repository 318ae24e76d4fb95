"""`vitrail evaluate`: the score of a classifier, or of a codec beside the classical ones."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.inputs import SIZES_HELP, add_device, device, image_files, positive, print_table, progress
from vitrail.cli.recognize import load_classifier
from vitrail.errors import FileError, VitrailError

if TYPE_CHECKING:
    import torch

    from vitrail.compress import Codec

PEERS = ("jpeg", "jpeg2000", "webp", "avif")

# What only one kind of model has use for, and what holds where it is not given.
CLASSIFIER: dict[str, Any] = {
    "label_column": 1,
    "sizes": None,
    "batch_size": 64,
    "on_corrupt": "stop",
    "confusion": None,
    "plot": None,
}
CODEC: dict[str, Any] = {"qualities": None, "peers": (), "features": None, "output": Path("evaluation")}

DESCRIPTION = """\
The score of models on a folder: top-1 and top-5 accuracy of classifiers; of codecs bits per pixel of real files, PSNR,
MS-SSIM, and BD-rates against JPEG where it is among the peers.
"""


def add_verb(verbs: Any) -> None:
    """Adds the verb to the command line."""
    evaluate = verbs.add_parser("evaluate", help="the score of classifiers or codecs", description=DESCRIPTION)
    evaluate.add_argument("model", metavar="MODEL", nargs="+", help="checkpoints, codecs or names of published weights")
    data = "class folders, a list file or tars; for codecs a folder of pictures, a picture or a quoted pattern"
    evaluate.add_argument("--data", required=True, type=Path, help=data)
    evaluate.add_argument("--json", action="store_true", help="one JSON object per model and resolution, or quality")
    add_device(evaluate)

    classifier = evaluate.add_argument_group("classifiers")
    classifier.add_argument("--label-column", type=int, help="of a list file, counted from 0 (default: 1)")
    classifier.add_argument("--sizes", type=positive, nargs="+", metavar="PIXELS", help=SIZES_HELP)
    classifier.add_argument("--batch-size", type=positive, metavar="N", help="images at once (default: 64)")
    skip = "skip: leave out and count unreadable files (default: stop)"
    classifier.add_argument("--on-corrupt", choices=("stop", "skip"), help=skip)
    confusion = "write the confusion matrix (of the last model and resolution) as .csv or .png"
    classifier.add_argument("--confusion", type=Path, metavar="FILE", help=confusion)
    plot = "draw accuracy against resolution (Figure 3.3)"
    classifier.add_argument("--plot", type=Path, metavar="FILE.png", help=plot)

    codec = evaluate.add_argument_group("codecs")
    codec.add_argument(
        "--qualities", type=positive, nargs="+", metavar="Q", help="numbers of sub-vectors (default: all)"
    )
    codec.add_argument("--peers", choices=PEERS, nargs="+", help="classical codecs to evaluate on the same pictures")
    features = "measure FID and KID too, by this network: timm:NAME, timm:NAME=FILE, or a checkpoint"
    codec.add_argument("--features", metavar="NETWORK", help=features)
    output = "where figures per image, means and plots go (default: evaluation)"
    codec.add_argument("-o", "--output", type=Path, metavar="FOLDER", help=output)
    evaluate.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """`vitrail evaluate`."""
    chosen = device(arguments.device)
    opened = {name: _open_codec(name, chosen) for name in arguments.model}
    codecs = {name: codec for name, codec in opened.items() if codec is not None}
    if codecs and len(codecs) < len(opened):
        raise VitrailError("Some of the models are codecs and others are not; evaluate the two kinds apart.")
    for name in CLASSIFIER if codecs else CODEC:
        if getattr(arguments, name) is not None:
            option, owner = name.replace("_", "-"), "classifiers" if codecs else "codecs"
            raise VitrailError(f"--{option} is for {owner}, which {arguments.model[0]} is none of; leave it out.")
    for name, default in (CODEC if codecs else CLASSIFIER).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    return run_codecs(arguments, codecs) if codecs else run_classifiers(arguments)


def run_classifiers(arguments: argparse.Namespace) -> int:
    """Accuracy at one or several resolutions."""
    from vitrail.data.datasets import ImageData
    from vitrail.data.loader import LoaderConfig
    from vitrail.plots import check_format
    from vitrail.recognize.evaluate import evaluate_at, plot_resolutions, write_confusion

    for drawing in (arguments.plot, arguments.confusion):
        if drawing and drawing.suffix != ".csv":
            check_format(drawing)
    loader = LoaderConfig(on_corrupt=arguments.on_corrupt)
    data = ImageData(arguments.data, label_column=arguments.label_column)
    rows: list[tuple[str, ...]] = []
    curves: dict[str, list[tuple[int, float]]] = {}
    for name in arguments.model:
        classifier = load_classifier(argparse.Namespace(model=name, device=arguments.device)).optimized()
        for size in arguments.sizes or [classifier.transform.size]:
            result = evaluate_at(classifier, data, size, arguments.batch_size, loader)
            figures = result.metric.compute()
            curves.setdefault(name, []).append((size, figures["top1"]))
            if arguments.json:
                print(json.dumps({"model": name, "size": size, **figures, "skipped": len(result.skipped)}), flush=True)
            rows.append(
                (name, str(size), *(f"{100 * figures[key]:.2f}" for key in ("top1", "top5", "mean_class_accuracy")))
            )
    if not arguments.json:
        print_table(("model", "pixels", "top-1 (%)", "top-5 (%)", "mean class accuracy (%)"), rows)
    if arguments.confusion:
        write_confusion(result.metric.confusion, classifier.classes, arguments.confusion)
    if arguments.plot:
        plot_resolutions(curves, arguments.plot)
    return 0


def run_codecs(arguments: argparse.Namespace, codecs: "Mapping[str, Codec]") -> int:
    """Rates and distortions, with the classical codecs beside."""
    from vitrail.compress.embedding import load_embedding
    from vitrail.compress.evaluate import Contender, classical_contenders, evaluate
    from vitrail.compress.evaluation_report import as_markdown, write_report
    from vitrail.plots import check_format

    check_format("psnr.png")
    files = image_files([str(arguments.data)])
    asked = arguments.qualities
    contenders = [Contender(name, one, tuple(asked or one.qualities)) for name, one in codecs.items()]
    contenders += classical_contenders(arguments.peers)
    embedding = load_embedding(arguments.features).to(device(arguments.device)) if arguments.features else None
    with progress() as bar:
        job = bar.add_task("Evaluating", total=len(files))
        result = evaluate(contenders, files, embedding, done=lambda: bar.advance(job))
    write_report(result, arguments.output)
    if arguments.json:
        for row in result.summaries:
            print(json.dumps({**asdict(row), "features": result.features}), flush=True)
    else:
        print(as_markdown(result), end="")
    return 0


def _open_codec(name: str, chosen: "torch.device") -> "Codec | None":
    """The codec of a run, a checkpoint, a file or a name; None for what is no codec, or cannot be opened at all: the
    classifiers' loader says why."""
    from vitrail.compress import Codec
    from vitrail.engine.checkpoint import load

    try:
        configuration: Any = load(name).header.configuration
    except FileError:  # not of a training
        try:
            return Codec.load(name, chosen)
        except VitrailError:
            return None
    return Codec.load(name, chosen) if configuration["type"].startswith("compress.") else None
