"""`vitrail bind`: files of all senses in one space, and search among them."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.inputs import add_device, device, places, positive, print_table, progress
from vitrail.errors import FileError, VitrailError

if TYPE_CHECKING:
    from vitrail.bind import ImageBind
    from vitrail.bind.evaluation.zero_shot import ZeroShotClassifier
    from vitrail.bind.search.index import Changes, Embedded, Index, Source

FILES_HELP = "files, folders, quoted patterns, or - for a list of files on standard input"
LABELS_HELP = (
    'classes: dog "cat|kitten" (several names of one) "other=attic|cellar" (called otherwise), or a FILE.txt with one '
    "a line"
)
TEMPLATE_HELP = (
    "what a name is put into, such as 'a photo of a {}.' (may be given several times; default: those of the sense, as "
    "a rule CLIP's 80)"
)
_AS_HELP = "files that the pattern fits are of this sense, such as depth=scans/*.png (may be given several times)"
_QUERY = "--text TEXT, --image FILE, --audio FILE, and so for every sense, as often as you like"


def add_verbs(verbs: Any) -> None:
    """Adds the verbs of this file to the command line."""
    bind = verbs.add_parser("bind", help="pictures, texts, sounds and sensors in one space: embed and search them")
    ways = bind.add_subparsers(dest="way", metavar="WAY", required=True)

    embed = ways.add_parser("embed", help="write the vectors of files to a table")
    embed.add_argument("inputs", nargs="+", metavar="FILE", help=FILES_HELP)
    embed.add_argument("-o", "--output", required=True, metavar="FILE.parquet", help="the table to write")
    _add_common(embed)
    _add_clips(embed)
    embed.set_defaults(run=run_embed)

    classify = ways.add_parser("classify", help="say which of some classes, named in words, files show or sound like")
    classify.add_argument("inputs", nargs="+", metavar="FILE", help=FILES_HELP)
    classify.add_argument("--labels", nargs="+", required=True, metavar="CLASS", help=LABELS_HELP)
    classify.add_argument("--template", dest="templates", action="append", metavar="TEXT", help=TEMPLATE_HELP)
    classify.add_argument("--top", type=positive, default=5, metavar="K", help="classes a file (default: 5)")
    classify.add_argument("--json", action="store_true", help="one JSON object per file and line")
    _add_common(classify)
    classify.set_defaults(run=run_classify)

    index = ways.add_parser("index", help="make an index of a folder, or bring it up to date")
    index.add_argument("folder", metavar="FOLDER", help="with files of any senses, at any depth")
    index.add_argument("-o", "--output", required=True, metavar="INDEX", help="the index's own folder")
    index.add_argument(
        "--workers", type=positive, metavar="N", help="index the files in FOLDER's tars, by N processes of Ray"
    )
    _add_common(index)
    _add_clips(index)
    index.set_defaults(run=run_index)

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
    add_device(generate)
    generate.set_defaults(run=run_generate, takes_fields=True)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="imagebind_huge", help="a published name, a file or a run (default: %(default)s)"
    )
    parser.add_argument("--as", dest="patterns", action="append", default=[], metavar="SENSE=PATTERN", help=_AS_HELP)
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="clips at once (default: 16)")
    add_device(parser)


def _add_clips(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clips",
        action="store_true",
        help="a vector for each 2 s of sounds and videos, and 5 s of motion, with its time, instead of one for a file",
    )


def run_embed(arguments: argparse.Namespace) -> int:
    """`vitrail bind embed`; 1 where some file could not be read."""
    import numpy as np

    from vitrail.bind.search.bulk import embed_sources, with_sound
    from vitrail.bind.search.index import Entry, write_vectors

    if Path(arguments.output).suffix != ".parquet":
        raise VitrailError(f"Cannot write {arguments.output}: its name must end in .parquet.")
    sources = [source for place in places(arguments.inputs) for source in _sources(place, arguments.patterns)]
    model = _load(arguments.model, arguments.device)
    sources = _known(model, with_sound(sources))
    entries, vectors, failed = [], [], []
    with progress() as bar:
        job = bar.add_task("Embedding", total=len(sources))
        for begin in range(0, len(sources), arguments.batch_size):
            few = sources[begin : begin + arguments.batch_size]
            for source, made in zip(few, embed_sources(model, few, arguments.batch_size, arguments.clips), strict=True):
                bar.advance(job)
                if isinstance(made, VitrailError):
                    failed.append(str(made))
                    continue
                for span, vector in zip(made.spans, made.vectors, strict=True):
                    entries.append(Entry(source.name, source.modality, *(span or (None, None))))
                    vectors.append(vector)
    _complain(failed)
    if not entries:
        raise FileError("No file could be embedded; nothing was written.")
    write_vectors(arguments.output, entries, np.stack(vectors))
    print(f"{len(entries)} vectors of {model.config.dimension} dimensions in {arguments.output}")
    return 1 if failed else 0


def run_classify(arguments: argparse.Namespace) -> int:
    """`vitrail bind classify`; 1 where some file could not be read."""
    from vitrail.bind.evaluation.zero_shot import ZeroShotClassifier
    from vitrail.bind.prompts import read_classes
    from vitrail.bind.search.bulk import embed_sources

    classes = read_classes(arguments.labels)
    sources = [source for place in places(arguments.inputs) for source in _sources(place, arguments.patterns)]
    if not sources:
        raise FileError(f"There is no file to classify in {', '.join(arguments.inputs)}; name some.")
    senses = {source.modality for source in sources}
    model = _load(arguments.model, arguments.device, sorted({"text", *senses}))
    failed = 0
    with progress() as bar:
        job = bar.add_task("Reading labels", total=None)
        templates = {sense: tuple(arguments.templates or model.modality(sense).templates) for sense in senses}
        known = {each: ZeroShotClassifier.from_names(model, classes, each) for each in set(templates.values())}
        bar.update(job, description="Classifying", total=len(sources))
        for begin in range(0, len(sources), arguments.batch_size):
            few = sources[begin : begin + arguments.batch_size]
            for source, made in zip(few, embed_sources(model, few, arguments.batch_size), strict=True):
                failed += isinstance(made, VitrailError)
                _say_classes(source, made, known[templates[source.modality]], arguments)
                bar.advance(job)
    if failed:
        print(f"vitrail: {failed} of {len(sources)} files could not be read", file=sys.stderr)
    return 1 if failed else 0


def _say_classes(
    source: "Source", made: "Embedded | VitrailError", classifier: "ZeroShotClassifier", arguments: argparse.Namespace
) -> None:
    import torch

    found: dict[str, Any] = {"path": str(source.path), "sense": source.modality}
    if isinstance(made, VitrailError):
        if not arguments.json:
            print(f"vitrail: {made}", file=sys.stderr)
        found["error"] = str(made)
    else:
        vector = torch.from_numpy(made.vectors[:1])
        similarities, probabilities = classifier.similarities(vector)[0], classifier.probabilities(vector)[0]
        best = similarities.argsort(descending=True, stable=True)[: arguments.top].tolist()
        found["classes"] = [
            {
                "class": classifier.classes[number],
                "probability": round(probabilities[number].item(), 6),
                "similarity": round(similarities[number].item(), 6),
            }
            for number in best
        ]
        if not arguments.json:
            words = "  ".join(f"{100 * one['probability']:5.1f}% {one['class']}" for one in found["classes"])
            print(f"{source.path}  {words}", flush=True)
    if arguments.json:
        text = json.dumps(found, ensure_ascii=False)
        print(text.encode("utf-8", "backslashreplace").decode(), flush=True)  # which are JSON's escapes as well


def run_index(arguments: argparse.Namespace) -> int:
    """`vitrail bind index`; 1 where some file could not be read."""
    from vitrail.bind.checkpoints.storage import fingerprint
    from vitrail.bind.search.bulk import embed_sources, with_sound
    from vitrail.bind.search.index import Index

    folder, output = Path(arguments.folder), Path(arguments.output)
    if not folder.is_dir():
        raise FileError(f"There is no folder {folder}; name one that holds files.")
    model = _load(arguments.model, arguments.device)
    source = Path(arguments.model)
    name = str(source.resolve() if source.exists() else source)  # the index is searched from other folders too
    index = Index.open_or_make(output, fingerprint(source), model.config.dimension, name)
    if arguments.workers:
        return _index_shards(index, model, folder, arguments)
    within = output.resolve()
    sources = [one for one in _sources(folder, arguments.patterns) if within not in one.path.resolve().parents]
    sources = _known(model, with_sound(sources))
    with progress() as bar:
        task = bar.add_task("Indexing", total=len(sources))
        changes = index.update(
            sources,
            partial(embed_sources, model, batch_size=arguments.batch_size, timed=arguments.clips),
            done=lambda files: bar.advance(task, files),
        )
    return _say_changes(index, changes)


def _index_shards(index: "Index", model: "ImageBind", folder: Path, arguments: argparse.Namespace) -> int:
    from vitrail.bind.search.sharded import Work, index_shards, list_shards

    sources = _known(model, list_shards(folder, _patterns(arguments.patterns)))
    source = Path(arguments.model)
    name = str(source.resolve()) if source.exists() else arguments.model
    work = Work(name, str(model.device), arguments.batch_size, arguments.clips)
    with progress() as bar:
        task = bar.add_task("Indexing", total=len(sources))
        changes = index_shards(index, sources, work, arguments.workers, lambda files: bar.advance(task, files))
    return _say_changes(index, changes)


def _say_changes(index: "Index", changes: "Changes") -> int:
    _complain(changes.failed)
    print(
        f"{index.folder}: {changes.added} embedded, {changes.kept} unchanged, {changes.removed} forgotten, "
        f"{len(changes.failed)} that cannot be read"
    )
    return 1 if changes.failed else 0


def run_search(arguments: argparse.Namespace) -> int:
    """`vitrail bind search`."""
    from vitrail.bind.checkpoints.storage import fingerprint
    from vitrail.bind.modalities import MODALITIES
    from vitrail.bind.search.index import Index
    from vitrail.bind.search.searcher import EXACT_BELOW, Searcher, combine

    if unknown := set(arguments.only) - set(MODALITIES):
        raise VitrailError(f"There is no sense {min(unknown)} for --only; choose among {', '.join(MODALITIES)}.")
    query = _query(arguments.fields, "search by")
    index = Index.open(arguments.index)
    source = arguments.model or index.source
    if fingerprint(source) != index.model:
        raise VitrailError(
            f"{source} is not the model that made {arguments.index}; name that one by --model, or make the index anew."
        )
    vectors = _embed_query(source, arguments.device, query)
    searcher = Searcher(index, sys.maxsize if arguments.exact else EXACT_BELOW)
    hits = searcher.search(combine(vectors, arguments.weights), arguments.count, arguments.only)
    if searcher.cells is not None:
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
    from vitrail.files import atomic_path

    query = _query(arguments.fields, "start from")
    output = Path(arguments.output)
    if output.suffix.lower() not in (".png", ".jpg", ".webp"):
        raise VitrailError(f"Cannot write {output}: its name must end in .png, .jpg or .webp.")
    generator = Generator(arguments.pipeline, device(arguments.device))
    vectors = _embed_query(arguments.model, arguments.device, query)
    vector = combine(vectors, arguments.weights)
    picture = generator.generate(vector, arguments.seed, arguments.steps, arguments.guidance)
    with atomic_path(output) as temporary:
        picture.save(temporary)
    print(f"{output}: {picture.width} x {picture.height} pixels")
    return 0


def _embed_query(model_name: str, device_name: str, query: list[tuple[str, str | Path]]) -> Any:
    """[n, d], of unit length; only the senses of the query are loaded."""
    import torch

    model = _load(model_name, device_name, list(dict.fromkeys(sense for sense, _ in query)))
    return torch.cat([model.embed({sense: [thing]})[sense] for sense, thing in query]).numpy()


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
        query.append((sense, thing if sense == "text" else Path(thing)))
    if not query:
        raise VitrailError(f"There is nothing to {use}; give --{', --'.join(MODALITIES)}, one or several.")
    return query


def _patterns(given: list[str]) -> dict[str, str]:
    """Pattern -> sense, of what --as says."""
    from vitrail.bind.modalities import MODALITIES

    senses = {}
    for one in given:
        sense, _, pattern = one.partition("=")
        if sense not in MODALITIES or not pattern:
            raise VitrailError(f"--as {one} is not SENSE=PATTERN; the senses are {', '.join(MODALITIES)}.")
        senses[pattern] = sense
    return senses


def _sources(place: Path, patterns: list[str]) -> list["Source"]:
    from vitrail.bind.search.bulk import modality_of, sort_files
    from vitrail.bind.search.index import Source

    senses = _patterns(patterns)
    if place.is_dir():
        sources, unknown = sort_files(place, senses)
        if unknown:
            print(f"vitrail: {unknown} files in {place} are of no known sense and left out", file=sys.stderr)
        return sources
    found = modality_of(str(place), senses)
    if found is None:
        raise VitrailError(f"What sense is {place} of? Say it by --as SENSE='{place.name}'.")
    return [Source(place, str(place), found)]


def _known(model: "ImageBind", sources: list["Source"]) -> list["Source"]:
    """Those of senses that the model has."""
    missing = sorted({source.modality for source in sources} - set(model.config.modalities))
    if missing:
        print(f"vitrail: the model has no {', '.join(missing)}; such files are left out", file=sys.stderr)
    known = [source for source in sources if source.modality not in missing]
    if not known:
        raise FileError(f"There is no file for a model of {', '.join(model.config.modalities)}; name some.")
    return known


def _load(name: str, device_name: str, senses: list[str] | None = None) -> "ImageBind":
    from vitrail.bind import ImageBind

    return ImageBind.load(name, modalities=senses, device=device(device_name))


def _complain(failed: Any) -> None:
    for sentence in failed:
        print(f"vitrail: {sentence}", file=sys.stderr)
