"""`vitrail models`, `vitrail export`: what networks there are, and how they leave for elsewhere."""

import argparse
from typing import Any

from vitrail.cli.inputs import print_table
from vitrail.errors import VitrailError


def add_verbs(verbs: Any) -> None:
    """Adds the verbs of this file to the command line."""
    models = verbs.add_parser("models", help="list the networks, or the published weights")
    models.add_argument("pattern", nargs="?", default="*", help="for example 'xcit_small*'")
    models.add_argument("--weights", action="store_true", help="list published weights instead: name, score, licence")
    models.set_defaults(run=run_models)

    export = verbs.add_parser("export", help="write a network as ONNX, torch.export program or safetensors")
    export.add_argument(
        "model",
        metavar="MODEL",
        help="a classifier or pre-trained network (checkpoint, run or published name), or a codec",
    )
    export.add_argument("-o", "--output", required=True, metavar="FILE", help="ends in .onnx, .pt2 or .safetensors")
    export.set_defaults(run=run_export)


def run_models(arguments: argparse.Namespace) -> int:
    """`vitrail models`."""
    from vitrail import weights

    names = weights.list_weights(arguments.pattern) if arguments.weights else weights.list_models(arguments.pattern)
    if not names:
        raise VitrailError(f"Nothing is called {arguments.pattern}; leave the pattern out to see all.")
    if arguments.weights:
        rows = [
            (entry.name, entry.metric, "" if entry.score is None else f"{entry.score:.1f}", entry.licence)
            for entry in map(weights.find_weights, names)
        ]
        print_table(("weights", "measure", "published (%)", "licence"), rows)
    else:
        print("\n".join(names))
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """`vitrail export`."""
    from vitrail.compress.storage import is_codec

    if is_codec(arguments.model):
        from vitrail.compress import Codec

        Codec.load(arguments.model).save(arguments.output)
    else:
        from vitrail import weights

        weights.export(weights.open_network(arguments.model), arguments.output)
    print(f"Wrote {arguments.output}")
    return 0
