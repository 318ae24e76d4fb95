"""`vitrail evaluate`: the score of a classifier, of a codec beside the classical ones, or of an ImageBind."""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.bind import LABELS_HELP, TEMPLATE_HELP
from vitrail.cli.inputs import SIZES_HELP, add_device, device, image_files, positive, print_table, progress
from vitrail.cli.recognize import load_classifier
from vitrail.cli.settings import SET_HELP, said_settings, settings_of
from vitrail.errors import FileError, VitrailError
from vitrail.files import check_writable

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress

    from vitrail.bind import ImageBind
    from vitrail.bind.evaluation.datasets import EvaluationSet
    from vitrail.bind.evaluation.evaluate import EmbeddedItems
    from vitrail.compress import Codec

PEERS = ("jpeg", "jpeg2000", "webp", "avif")

LAYOUTS = ("audiocaps", "clotho", "esc10", "esc50", "llvip", "msrvtt", "nyu_d", "sun_rgbd", "vggsound")

# What only some kinds of models have use for, and what holds where it is not given.
OPTIONS: dict[str, dict[str, Any]] = {
    "classifiers": {
        "label_column": 1,
        "sizes": None,
        "batch_size": 64,
        "on_corrupt": "stop",
        "confusion": None,
        "plot": None,
    },
    "codecs": {"qualities": None, "peers": (), "features": None, "output": Path("evaluation")},
    "ImageBinds": {
        "batch_size": 16,
        "on_corrupt": "stop",
        "confusion": None,
        "layout": None,
        "sense": None,
        "labels": None,
        "template": None,
        "shots": None,
        "train": None,
        "settings": [],
    },
}

DESCRIPTION = """\
The score of models on a folder: top-1 and top-5 accuracy of classifiers; of codecs bits per pixel of real files, PSNR,
MS-SSIM, and BD-rates against JPEG where it is among the peers; of ImageBinds zero-shot and few-shot accuracy or mean
average precision where files have labels, and retrieval where they have captions or files of another sense.
"""


def add_verb(verbs: Any) -> None:
    """Adds the verb to the command line."""
    evaluate = verbs.add_parser(
        "evaluate", help="the score of classifiers, codecs or ImageBinds", description=DESCRIPTION
    )
    evaluate.add_argument(
        "model", metavar="MODEL", nargs="+", help="checkpoints, codecs, files of models or names of published weights"
    )
    data = (
        "class folders, a list file or tars; for codecs a folder of pictures, a picture or a quoted pattern; for "
        "ImageBinds class folders or a table"
    )
    evaluate.add_argument("--data", required=True, type=Path, help=data)
    evaluate.add_argument("--json", action="store_true", help="one JSON object per model and resolution, or quality")
    add_device(evaluate)

    classifier = evaluate.add_argument_group("classifiers")
    classifier.add_argument("--label-column", type=int, help="of a list file, counted from 0 (default: 1)")
    classifier.add_argument("--sizes", type=positive, nargs="+", metavar="PIXELS", help=SIZES_HELP)
    classifier.add_argument(
        "--batch-size", type=positive, metavar="N", help="images at once (default: 64; clips of ImageBinds: 16)"
    )
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

    bind = evaluate.add_argument_group("ImageBinds (--batch-size, --on-corrupt and --confusion too)")
    bind.add_argument("--layout", choices=LAYOUTS, help="the folder is this data set, as published")
    sense = "of the files, where suffixes do not tell; several, such as audio image, are combined (Table 6.4)"
    bind.add_argument("--sense", nargs="+", metavar="SENSE", help=sense)
    bind.add_argument("--labels", nargs="+", metavar="CLASS", help=LABELS_HELP)
    bind.add_argument("--template", action="append", metavar="TEXT", help=TEMPLATE_HELP)
    shots = "few-shot instead of zero-shot: linear classifiers of so many examples a class, such as 1 2 4 8"
    bind.add_argument("--shots", type=positive, nargs="+", metavar="K", help=shots)
    train = "where examples come from (default: other folds, or the data itself, whose rest is the test)"
    bind.add_argument("--train", type=Path, metavar="DATA", help=train)
    bind.add_argument("--set", dest="settings", action="append", metavar="SENSE.FIELD=VALUE", help=SET_HELP)
    evaluate.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """`vitrail evaluate`."""
    chosen = device(arguments.device)
    settings = settings_of(said_settings(arguments.settings)) if arguments.settings else {}
    opened = {name: _open(name, chosen, settings) for name in arguments.model}
    kinds = {kind for kind, _ in opened.values()}
    if len(kinds) > 1:
        raise VitrailError(f"Some of the models are {' and others '.join(sorted(kinds))}; evaluate the kinds apart.")
    (kind,) = kinds
    for name in {name: None for options in OPTIONS.values() for name in options if name not in OPTIONS[kind]}:
        if getattr(arguments, name) is not None:
            owners = " and ".join(owner for owner, options in OPTIONS.items() if name in options)
            option = {"settings": "set"}.get(name, name.replace("_", "-"))
            raise VitrailError(f"--{option} is for {owners}, which {arguments.model[0]} is none of; leave it out.")
    for name, default in OPTIONS[kind].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    models: dict[str, Any] = {name: model for name, (_, model) in opened.items()}
    if kind == "codecs":
        return run_codecs(arguments, models)
    return run_bind(arguments, models) if kind == "ImageBinds" else run_classifiers(arguments)


def run_classifiers(arguments: argparse.Namespace) -> int:
    """Accuracy at one or several resolutions."""
    from vitrail.data.datasets import ImageData
    from vitrail.data.loader import LoaderConfig
    from vitrail.recognize.evaluate import evaluate_at, plot_resolutions, write_confusion

    _check_outputs(arguments.plot, table=arguments.confusion)
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
                _print_json({"model": name, "size": size, **figures, "skipped": len(result.skipped)})
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


def _print_json(figures: Mapping[str, Any]) -> None:
    """One line; figures that are not finite, of which JSON has none, become null."""
    finite = {name: None if isinstance(one, float) and not math.isfinite(one) else one for name, one in figures.items()}
    print(json.dumps(finite), flush=True)


def _check_outputs(figure: Path | None, table: Path | None = None) -> None:
    """Finds out before the work whether a figure, and what may be a table or a figure, can be written."""
    from vitrail.plots import check_figure

    if figure:
        check_figure(figure)
    if table:
        check = check_writable if table.suffix == ".csv" else check_figure
        check(table)


def run_codecs(arguments: argparse.Namespace, codecs: "Mapping[str, Codec]") -> int:
    """Rates and distortions, with the classical codecs beside."""
    from vitrail.compress.evaluation.embedding import load_embedding
    from vitrail.compress.evaluation.evaluate import Contender, classical_contenders, evaluate
    from vitrail.compress.evaluation.report import as_markdown, write_report

    _check_outputs(arguments.output / "psnr.png")
    files = image_files([str(arguments.data)])
    asked = tuple(dict.fromkeys(arguments.qualities or ()))
    contenders = [Contender(name, one, asked or one.qualities) for name, one in codecs.items()]
    contenders += classical_contenders(arguments.peers)
    embedding = load_embedding(arguments.features).to(device(arguments.device)) if arguments.features else None
    with progress() as bar:
        job = bar.add_task("Evaluating", total=len(files))
        result = evaluate(contenders, files, embedding, done=lambda: bar.advance(job))
    write_report(result, arguments.output)
    if arguments.json:
        for row in result.summaries:
            _print_json({**asdict(row), "features": result.features})
    else:
        print(as_markdown(result), end="")
    return 0


def run_bind(arguments: argparse.Namespace, models: "Mapping[str, ImageBind]") -> int:
    """Zero-shot or few-shot classification, or retrieval, whichever the data are for."""
    from vitrail.bind.evaluation.datasets import open_data
    from vitrail.bind.evaluation.layouts import open_layout
    from vitrail.bind.prompts import read_classes

    _check_outputs(None, table=arguments.confusion)
    if arguments.layout and arguments.labels:
        raise VitrailError(f"The classes of {arguments.layout} have their names; leave out --labels or --layout.")
    sense = arguments.sense[0] if arguments.sense else None
    classes = read_classes(arguments.labels) if arguments.labels else None
    if arguments.layout:
        data = open_layout(arguments.layout, arguments.data)
    else:
        data = open_data(arguments.data, sense, classes)
    _refuse_useless(arguments, data)
    senses = arguments.sense or [data.sense]
    rows: list[tuple[str, ...]] = []
    for name, model in models.items():
        for each in [*senses, data.partner] if data.classes is None or not arguments.shots else senses:
            model.modality(each)
        training = None
        with progress() as bar:
            embedded = _embed(arguments, model, data, senses, bar)
            if arguments.train:
                examples = open_data(arguments.train, senses[0], data.classes)
                training = _embed(arguments, model, examples, senses, bar)
            bar.add_task("Comparing", total=None)
            figures = _bind_figures(arguments, model, data, embedded, training)
        about = {"model": name, "senses": senses, "files": len(embedded.items), "skipped": len(embedded.skipped)}
        for path, reason in embedded.skipped.items():
            print(f"vitrail: Cannot read {path}: {reason}; left out.", file=sys.stderr)
        if arguments.json:
            _print_json({**about, **figures})
        rows += [(name, key.replace("_", " "), _shown(key, value)) for key, value in figures.items() if key != "loss"]
    if not arguments.json:
        print_table(("model", "figure", "value"), rows)
    return 0


def _refuse_useless(arguments: argparse.Namespace, data: "EvaluationSet") -> None:
    labelled, zero_shot = data.classes is not None, data.classes is not None and not arguments.shots
    for option, needs, there in (
        ("labels", "files with labels", labelled),
        ("shots", "files with labels", labelled),
        ("train", "--shots", bool(arguments.shots)),
        ("template", "zero-shot classification", zero_shot),
        ("confusion", "zero-shot classification with one label a file", zero_shot and not data.multi_label),
    ):
        if getattr(arguments, option) and not there:
            raise VitrailError(f"--{option} is for {needs}, which this is not; leave it out.")


def _embed(
    arguments: argparse.Namespace, model: "ImageBind", data: "EvaluationSet", senses: list[str], bar: "Progress"
) -> "EmbeddedItems":
    from vitrail.bind.evaluation.evaluate import embed_items

    job = bar.add_task("Embedding", total=len(data.items) * len(senses))
    return embed_items(
        model,
        data.items,
        senses,
        batch_size=arguments.batch_size,
        on_corrupt=arguments.on_corrupt,
        done=lambda: bar.advance(job),
    )


def _bind_figures(
    arguments: argparse.Namespace,
    model: "ImageBind",
    data: "EvaluationSet",
    embedded: "EmbeddedItems",
    training: "EmbeddedItems | None",
) -> dict[str, float]:
    from vitrail.bind.evaluation.evaluate import evaluate_retrieval, few_shot, zero_shot
    from vitrail.bind.evaluation.few_shot import FEW_SHOT_DEPTH, FewShot
    from vitrail.bind.evaluation.zero_shot import ZeroShotClassifier
    from vitrail.metrics.classification import Classification
    from vitrail.recognize.evaluate import write_confusion

    if data.classes is None:
        senses = "+".join(arguments.sense or [data.sense])
        return evaluate_retrieval(model, embedded, senses, data.partner, arguments.batch_size)
    titles = tuple(data.classes)
    if arguments.shots:
        config = FEW_SHOT_DEPTH if data.sense == "depth" else FewShot()
        accuracies = few_shot(embedded, titles, arguments.shots, training=training, config=config)
        return {f"top1_of_{shots}_shot": accuracy for shots, accuracy in accuracies.items()}
    templates = arguments.template or model.modality(data.sense).templates
    metric = zero_shot(ZeroShotClassifier.from_names(model, data.classes, templates), embedded)
    if arguments.confusion and isinstance(metric, Classification):
        write_confusion(metric.confusion, titles, arguments.confusion)
    return metric.compute()


def _shown(key: str, value: float) -> str:
    return f"{value:.1f}" if key.endswith("median_rank") else f"{100 * value:.2f} %"


def _open(
    name: str, chosen: "torch.device", settings: dict[str, dict[str, Any]]
) -> "tuple[str, Codec | ImageBind | None]":
    """What kind of model that is, and the codec or ImageBind itself; what is neither, or cannot be opened at all, is
    left to the classifiers' loader, which says why."""
    from vitrail.bind import ImageBind
    from vitrail.bind.checkpoints.official import PUBLISHED
    from vitrail.compress import Codec
    from vitrail.engine.checkpoint import load

    try:
        configuration: Any = load(name).header.configuration
    except FileError:  # not of a training
        if name in PUBLISHED:
            return "ImageBinds", ImageBind.load(name, device=chosen, settings=settings)
        try:
            return "codecs", Codec.load(name, chosen)
        except VitrailError:
            pass
        try:
            return "ImageBinds", ImageBind.load(name, device=chosen, settings=settings)
        except VitrailError:
            if settings:  # which are for ImageBinds alone
                raise
            return "classifiers", None
    if configuration["type"].startswith("compress."):
        return "codecs", Codec.load(name, chosen)
    if configuration["type"].startswith("bind."):
        return "ImageBinds", ImageBind.load(name, device=chosen, settings=settings)
    return "classifiers", None
