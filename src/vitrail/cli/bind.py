"""`vitrail bind`: files of all senses in one space: their vectors, their classes, and indices of them."""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli import search
from vitrail.cli.inputs import add_device, places, positive, progress
from vitrail.cli.settings import add_settings, load_bind, said_settings, settings_of
from vitrail.errors import FileError, VitrailError

if TYPE_CHECKING:
    from vitrail.bind import ImageBind
    from vitrail.bind.evaluation.zero_shot import ZeroShotClassifier
    from vitrail.bind.search.index import Changes, Embedded, Index, Source
    from vitrail.bind.search.sharded import Work

FILES_HELP = "files, folders, quoted patterns, or - for a list of files on standard input"
LABELS_HELP = (
    'classes: dog "cat|kitten" (several names of one) "other=attic|cellar" (called otherwise), or a FILE.txt with one '
    "a line"
)
TEMPLATE_HELP = (
    "what a name is put into, such as 'a photo of a {}.' (may be given several times; default: those of the sense, as "
    "a rule CLIP's 80)"
)
_AS_HELP = (
    "files whose paths, below a FOLDER that is named, fit the pattern are of this sense, such as depth=*/depth/*.png "
    "(may be given several times)"
)


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

    search.add_ways(ways)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="imagebind_huge", help="a published name, a file or a run (default: %(default)s)"
    )
    parser.add_argument("--as", dest="patterns", action="append", default=[], metavar="SENSE=PATTERN", help=_AS_HELP)
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="clips at once (default: 16)")
    add_settings(parser)
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
    from vitrail.bind.search.parts import cannot_keep
    from vitrail.files import check_writable

    if Path(arguments.output).suffix != ".parquet":
        raise VitrailError(f"Cannot write {arguments.output}: its name must end in .parquet.")
    check_writable(arguments.output)
    sources = _sources(places(arguments.inputs), _patterns(arguments.patterns))
    model = load_bind(arguments, settings_of(said_settings(arguments.settings)))
    # Files of several folders may be called alike below them.
    sources = [replace(source, name=str(source.path)) for source in _known(model, with_sound(sources))]
    entries, vectors, failed = [], [], [sentence for source in sources if (sentence := cannot_keep(source.name))]
    sources = [source for source in sources if not cannot_keep(source.name)]
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
    from vitrail.bind.search.bulk import embed_sources, with_sound

    classes = read_classes(arguments.labels)
    sources = with_sound(_sources(places(arguments.inputs), _patterns(arguments.patterns)), beside=False)
    if not sources:
        raise FileError(f"There is no file to classify in {', '.join(arguments.inputs)}; name some.")
    senses = {source.modality for source in sources}
    model = load_bind(arguments, settings_of(said_settings(arguments.settings)), sorted({"text", *senses}))
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
    from vitrail.bind.search.index import MANIFEST, Index
    from vitrail.bind.search.sharded import Work

    folder, output = Path(arguments.folder), Path(arguments.output)
    if not folder.is_dir():
        raise FileError(f"There is no folder {folder}; name one that holds files.")
    options: dict[str, str | bool] = dict(Index.open(output).options) if (output / MANIFEST).exists() else {}
    options |= said_settings(arguments.settings) | ({"clips": True} if arguments.clips else {})
    settings = settings_of({name: value for name, value in options.items() if name != "clips"})
    model = load_bind(arguments, settings)
    source = Path(arguments.model)
    name = str(source.resolve() if source.exists() else source)  # the index is searched from other folders too
    patterns = _patterns(arguments.patterns)
    index = Index.open_or_make(output, fingerprint(source), model.config.dimension, name, options, folder, patterns)
    timed = "clips" in options
    if arguments.workers:
        work = Work(name, str(model.device), arguments.batch_size, timed, settings)
        return _index_shards(index, model, folder, work, arguments)
    sources = with_sound(_sources([folder], index.patterns, aside=output))
    sources = _known(model, sources, least=0 if (output / MANIFEST).exists() else 1)
    with progress() as bar:
        task = bar.add_task("Indexing", total=len(sources))
        changes = index.update(
            sources,
            partial(embed_sources, model, batch_size=arguments.batch_size, timed=timed),
            done=lambda files: bar.advance(task, files),
        )
    return _say_changes(index, changes)


def _index_shards(index: "Index", model: "ImageBind", folder: Path, work: "Work", arguments: argparse.Namespace) -> int:
    from vitrail.bind.search.sharded import index_shards, list_shards

    sources = list_shards(folder, index.patterns)
    _say_idle(index.patterns, sources)
    sources = _known(model, sources)
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


def _sources(inputs: Iterable[Path], senses: dict[str, str], aside: Path | None = None) -> list["Source"]:
    """The files of `inputs` and of the folders among them, of senses as by `_patterns`; files in the folder `aside` are
    left aside."""
    from vitrail.bind.search.bulk import modality_of, sort_files
    from vitrail.bind.search.index import Source

    sources = []
    for place in inputs:
        if place.is_dir():
            found, unknown = sort_files(place, senses, aside)
            if unknown:
                print(f"vitrail: {unknown} files in {place} are of no known sense and left out", file=sys.stderr)
            sources += found
        elif sense := modality_of(str(place), senses):
            sources.append(Source(place, str(place), sense))
        else:
            raise VitrailError(f"What sense is {place} of? Say it by --as SENSE='*{place.name}'.")
    _say_idle(senses, sources)
    return sources


def _say_idle(patterns: dict[str, str], sources: list["Source"]) -> None:
    """What --as says in vain, as a mistyped pattern does: depth would become pictures."""
    for pattern, sense in patterns.items():
        if not any(fnmatchcase(source.name, pattern) for source in sources):
            advice = "patterns are compared with whole paths below the folder, or of files as they are named"
            print(f"vitrail: no file fits --as {sense}={pattern}; {advice}", file=sys.stderr)


def _known(model: "ImageBind", sources: list["Source"], least: int = 1) -> list["Source"]:
    """Those of senses that the model has, so many at least."""
    missing = sorted({source.modality for source in sources} - set(model.config.modalities))
    if missing:
        print(f"vitrail: the model has no {', '.join(missing)}; such files are left out", file=sys.stderr)
    known = [source for source in sources if source.modality not in missing]
    if len(known) < least:
        raise FileError(f"There is no file for a model of {', '.join(model.config.modalities)}; name some.")
    return known


def _complain(failed: Any) -> None:
    for sentence in failed:
        print(f"vitrail: {sentence}", file=sys.stderr)
