"""`vitrail recognize`: XCiT at work."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.inputs import add_device, device, image_files, positive, progress
from vitrail.errors import VitrailError

if TYPE_CHECKING:
    from vitrail.recognize.classify import Classifier, Prediction

IMAGES_HELP = "files, folders, quoted patterns, or - for a list of files on standard input"


def add_verbs(verbs: Any) -> None:
    """Adds the verbs of this file to the command line."""
    recognize = verbs.add_parser("recognize", help="classify pictures, and see why")
    jobs = recognize.add_subparsers(dest="job", metavar="JOB", required=True)

    classify = jobs.add_parser("classify", help="name what is in pictures")
    _add_model_and_images(classify)
    classify.add_argument("--top", type=positive, default=5, metavar="K", help="classes a picture (default: 5)")
    classify.add_argument("--json", action="store_true", help="one JSON object per picture and line")
    classify.add_argument("--batch-size", type=positive, default=32, metavar="N", help="pictures at once (default: 32)")
    classify.set_defaults(run=run_classify)

    explain = jobs.add_parser("explain", help="draw what an XCiT looks at")
    _add_model_and_images(explain)
    explain.add_argument("-o", "--output", required=True, metavar="FILE.png", help="the picture to write")
    explain.add_argument(
        "--map",
        choices=("class-attention", "norms"),
        default="class-attention",
        help="what each head of the class token attends to, or the norms of queries and keys",
    )
    explain.add_argument(
        "--layer", type=int, default=-1, help="which class attention block, or layer for norms (default: last)"
    )
    explain.set_defaults(run=run_explain)


def _add_model_and_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint or the name of published weights")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=IMAGES_HELP)
    parser.add_argument("--size", type=positive, help="resize pictures to so many pixels a side (default: the model's)")
    add_device(parser)


def load_classifier(arguments: argparse.Namespace) -> "Classifier":
    """The classifier that the arguments name, on its device, ready for use."""
    from vitrail.weights import load_classifier

    classifier = load_classifier(arguments.model)
    classifier.model.to(device(arguments.device)).eval()
    return classifier.at_size(arguments.size) if getattr(arguments, "size", None) else classifier


def run_classify(arguments: argparse.Namespace) -> int:
    """`vitrail recognize classify`; status 1 when a file could not be read."""
    files = image_files(arguments.images)
    classifier = load_classifier(arguments).optimized()
    failed = 0
    with progress() as bar:
        predictions = classifier.predict(files, top=arguments.top, batch_size=arguments.batch_size)
        for prediction in bar.track(predictions, total=len(files), description="Classifying"):
            failed += prediction.error is not None
            if arguments.json:
                text = json.dumps(_as_json(prediction), ensure_ascii=False)
                print(text.encode("utf-8", "backslashreplace").decode(), flush=True)  # which are JSON's escapes as well
            elif prediction.error:
                print(f"vitrail: {prediction.error}", file=sys.stderr)
            else:
                classes = "  ".join(f"{100 * probability:5.1f}% {name}" for name, probability in prediction.classes)
                print(f"{prediction.path}  {classes}", flush=True)
    if failed:
        print(f"vitrail: {failed} of {len(files)} files could not be read", file=sys.stderr)
    return 1 if failed else 0


def _as_json(prediction: "Prediction") -> dict[str, Any]:
    if prediction.error:
        return {"path": str(prediction.path), "error": prediction.error}
    classes = [{"class": name, "probability": round(probability, 6)} for name, probability in prediction.classes]
    return {"path": str(prediction.path), "classes": classes}


def run_explain(arguments: argparse.Namespace) -> int:
    """`vitrail recognize explain`."""
    from vitrail.backbones.xcit import XCiT
    from vitrail.recognize.explain import explain

    files = image_files(arguments.images)
    classifier = load_classifier(arguments)
    if not isinstance(classifier.model, XCiT):
        raise VitrailError(f"{arguments.model} is no XCiT; only XCiT's attention can be drawn.")
    explain(classifier, files, Path(arguments.output), arguments.map, arguments.layer)
    print(f"Wrote {arguments.output}")
    return 0
