"""`vitrail bind search` and `generate`: what is nearest to a query of texts and files, and a picture of it."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from vitrail.cli.inputs import add_device, device, positive, print_table
from vitrail.cli.settings import add_settings, load_bind, said_settings, settings_of
from vitrail.errors import FileError, VitrailError

_QUERY = "--text TEXT, --image FILE, --audio FILE, and so for every sense, as often as you like"


def add_ways(ways: Any) -> None:
    """Adds the ways of this file to `vitrail bind`."""
    search = ways.add_parser(
        "search",
        help="find what is nearest to a text, a picture, a sound, or a sum of them",
        usage=f"vitrail bind search INDEX {_QUERY} [--weights W ...] [--only SENSE ...]",
        description=f"What to search by: {_QUERY}. Several are added up.",
    )
    search.add_argument("index", metavar="INDEX", help="of `vitrail bind index`")
    search.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="of what is searched by, in order (default: equal)"
    )
    search.add_argument("--only", nargs="+", default=(), metavar="SENSE", help="find only what is of these senses")
    search.add_argument("--count", type=positive, default=10, metavar="N", help="most hits (default: 10)")
    search.add_argument("--json", action="store_true", help="one JSON object a hit")
    search.add_argument("--exact", action="store_true", help="look at every vector of even a very large index")
    search.add_argument("--model", metavar="MODEL", help="where the index's model is now (default: where it was)")
    add_device(search)
    _take_negative_numbers(search)
    search.set_defaults(run=run_search, takes_fields=True)

    generate = ways.add_parser(
        "generate",
        help="paint what a sound, a text, a picture, or a sum of them stand for",
        usage=f"vitrail bind generate --pipeline FOLDER -o FILE.png {_QUERY} [--weights W ...]",
        description=f"What to start from: {_QUERY}. Several are added up.",
    )
    generate.add_argument(
        "--pipeline", required=True, metavar="FOLDER", help="weights of diffusers' StableUnCLIPImg2ImgPipeline"
    )
    generate.add_argument("-o", "--output", required=True, metavar="FILE.png", help="the picture to write")
    generate.add_argument("--weights", type=float, nargs="+", metavar="W", help="of what to start from, in order")
    generate.add_argument("--seed", type=int, default=0, metavar="N", help="another one, another picture (default: 0)")
    generate.add_argument("--steps", type=positive, default=20, metavar="N", help="of diffusion (default: 20)")
    generate.add_argument("--guidance", type=float, default=10.0, metavar="G", help="1: none (default: 10)")
    generate.add_argument("--model", default="imagebind_huge", help="a published name, a file or a run")
    add_settings(generate)
    add_device(generate)
    _take_negative_numbers(generate)
    generate.set_defaults(run=run_generate, takes_fields=True)


def _take_negative_numbers(parser: argparse.ArgumentParser) -> None:
    """As weights, also such as -1e-3, which argparse takes for an option."""
    parser._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)


def run_search(arguments: argparse.Namespace) -> int:
    """`vitrail bind search`."""
    from vitrail.bind.checkpoints.storage import fingerprint
    from vitrail.bind.modalities import MODALITIES
    from vitrail.bind.search.index import MANIFEST, Index
    from vitrail.bind.search.searcher import EXACT_BELOW, Searcher, combine

    if unknown := set(arguments.only) - set(MODALITIES):
        raise VitrailError(f"There is no sense {min(unknown)} for --only; choose among {', '.join(MODALITIES)}.")
    query = _query(arguments.fields, "search by")
    # Of `--text rain INDEX` argparse, to which the senses are unknown, takes rain for the index.
    if not Path(arguments.index, MANIFEST).exists():
        raise FileError(
            f"There is no index in {arguments.index}; name one before what to search by, or make one with: vitrail "
            "bind index."
        )
    index = Index.open(arguments.index)
    source = arguments.model or index.source
    if fingerprint(source) != index.model:
        raise VitrailError(
            f"{source} is not the model that made {arguments.index}; name that one by --model, or make the index anew."
        )
    arguments.model = source
    settings = settings_of({name: value for name, value in index.options.items() if name != "clips"})
    vectors = _embed_query(arguments, settings, query)
    searcher = Searcher(index, sys.maxsize if arguments.exact else EXACT_BELOW)
    hits = searcher.search(combine(vectors, arguments.weights), arguments.count, arguments.only)
    if searcher.cells is not None and searcher.approximates(arguments.only):
        found = f"{100 * searcher.cells.recall:.0f}% of the nearest"
        print(f"vitrail: an approximate search, which finds about {found}; --exact finds all", file=sys.stderr)
    if arguments.json:
        for hit in hits:
            print(json.dumps({"similarity": hit.similarity, **vars(hit.entry)}))
    else:
        rows = [(f"{hit.similarity:.3f}", hit.entry.modality, _place(hit.entry), hit.entry.name) for hit in hits]
        print_table(("similarity", "sense", "seconds", "file"), rows)
    return 0


def run_generate(arguments: argparse.Namespace) -> int:
    """`vitrail bind generate`."""
    from vitrail.bind.generate import Generator
    from vitrail.bind.search.searcher import combine
    from vitrail.files import atomic_path, check_writable

    query = _query(arguments.fields, "start from")
    output = Path(arguments.output)
    if output.suffix.lower() not in (".png", ".jpg", ".webp"):
        raise VitrailError(f"Cannot write {output}: its name must end in .png, .jpg or .webp.")
    check_writable(output)
    generator = Generator(arguments.pipeline, device(arguments.device))
    vectors = _embed_query(arguments, settings_of(said_settings(arguments.settings)), query)
    vector = combine(vectors, arguments.weights)
    picture = generator.generate(vector, arguments.seed, arguments.steps, arguments.guidance)
    with atomic_path(output) as temporary:
        picture.save(temporary)
    print(f"{output}: {picture.width} x {picture.height} pixels")
    return 0


def _embed_query(
    arguments: argparse.Namespace, settings: dict[str, dict[str, Any]], query: list[tuple[str, str | Path]]
) -> Any:
    """[n, d], of unit length; only the senses of the query are loaded."""
    import torch

    from vitrail.data.corrupt import CorruptSample

    model = load_bind(arguments, settings, list(dict.fromkeys(sense for sense, _ in query)))
    try:
        return torch.cat([model.embed({sense: [thing]})[sense] for sense, thing in query]).numpy()
    except CorruptSample as error:
        raise FileError(f"Cannot read {error.path}: {error.reason}; mend it, or take another file.") from None


def _place(entry: Any) -> str:
    return "" if entry.start is None else f"{entry.start:g}-{entry.start + entry.seconds:g}"


def _query(fields: list[str], use: str) -> list[tuple[str, str | Path]]:
    """Senses and what to search by, or to start from, in the order of the command line."""
    from vitrail.bind.modalities import MODALITIES

    query: list[tuple[str, str | Path]] = []
    rest = iter(fields)
    for field in rest:
        name, equals, value = field.partition("=")
        sense = name.removeprefix("--")
        if sense not in MODALITIES or not name.startswith("--"):
            raise VitrailError(f"There is no {field} to {use}; choose among --{', --'.join(MODALITIES)}.")
        thing = value if equals else next(rest, None)
        if thing is None:
            raise VitrailError(f"{field} is followed by nothing; say what to {use}.")
        if sense == "text" and not thing.strip():
            raise VitrailError(f"The text to {use} is empty; say something.")
        query.append((sense, thing if sense == "text" else Path(thing)))
    if not query:
        raise VitrailError(f"There is nothing to {use}; give --{', --'.join(MODALITIES)}, one or several.")
    return query
