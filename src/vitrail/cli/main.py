"""`vitrail`: finds the verb, and says what went wrong in one sentence."""

import argparse
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vitrail.cli import bind, compress, models, pretrain, recognize, train
from vitrail.errors import VitrailError, from_system

DESCRIPTION = (
    "Vision systems on your own data: pictures in few bytes, recognition, features without labels, "
    "six senses in one space."
)

EXAMPLES = """\
examples:
  vitrail compress photo.jpg -o photo.vtr --quality 4
  vitrail decompress photo.vtr -o photo.png
  vitrail train xcit_folder --data.root photos/train --validation photos/val
  vitrail recognize classify runs/xcit_folder/checkpoints/best.safetensors photos/new/*.jpg
  vitrail train splitmask_mini --data.root photos -o runs/pretrained
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; importing and building it never loads torch, so that help and completion are instant."""
    parser = argparse.ArgumentParser(
        prog="vitrail", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for family in (train, recognize, compress, models, pretrain, bind):
        family.add_verbs(verbs)
    demo = verbs.add_parser("demo", help="one of the systems at work on bundled photos, with a report to open")
    demo.add_argument(
        "system",
        nargs="?",
        choices=("compress", "recognize"),
        default="compress",
        help="compress photos to few bytes (the default), or train, evaluate and explain a small XCiT in two minutes",
    )
    demo.add_argument("-o", "--output", metavar="FOLDER", help="where the report goes (default: demo/SYSTEM)")
    demo.set_defaults(run=_demo)
    completion = verbs.add_parser("completion", help="print a script that completes vitrail's commands in your shell")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(run=_completion)
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    from importlib import import_module

    demo = import_module(f"vitrail.demo.{arguments.system}")
    return demo.run_demo(arguments.output or f"demo/{arguments.system}")


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(build_parser(), shell=arguments.shell))
    return 0


def _version() -> str:
    from importlib.metadata import version

    return version("vitrail")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit status: 0, 1 for an error that it has named, 2 for a wrong command."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # whoever started us has closed it
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 (it stays open)
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here, where a reader who has gone is expected
    except VitrailError as error:
        print(f"vitrail: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("vitrail: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; a second failure while Python flushes at exit is of no use to anyone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"vitrail: {from_system(error)}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        message = f"{error.__cause__} {error}"  # the first where PyTorch, waiting for data, says how a process ended
        if isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", message):
            sentence = "The memory is full; take smaller batches or smaller pictures."
        elif lost := re.search("DataLoader worker.*? (killed by signal: [^.]*|exited unexpectedly[^.]*)", message):
            sentence = f"A process that read data was lost ({lost[1]}); if memory or /dev/shm was full, take smaller "
            sentence += "pictures, or in training fewer such processes (--loader.workers)."
        else:
            raise
        print(f"vitrail: {sentence}", file=sys.stderr)
        return 1


def _run(argv: Sequence[str] | None) -> int:
    for stream in (sys.stdin, sys.stdout):  # names of files may be any bytes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if stream.encoding == "utf-8" else "backslashreplace")
    _let_threads_sleep()
    parser = build_parser()
    arguments, fields = parser.parse_known_args(argv)
    if arguments.version:
        print(f"vitrail {_version()}")
        return 0
    if arguments.verb is None:
        parser.print_help()
        return 2
    if fields and not hasattr(arguments, "takes_fields"):
        parser.error(f"unrecognized arguments: {' '.join(fields)}")
    arguments.fields = fields
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with warnings.catch_warnings():  # the way they are shown is as it was, afterwards
        warnings.showwarning = partial(_show_warning, warnings.showwarning)
        return arguments.run(arguments)


def _let_threads_sleep() -> None:
    """Unless the user has chosen: OpenMP's threads sleep soon after they have begun to wait for each other.

    Those of GNU spin on for some ten million rounds, which keeps the core from the very thread that they wait for when
    another process has taken one: everything takes ten times as long then. Read when torch is imported, thus set here.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _show_warning(otherwise: Any, message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Vitrail's own in one line, as all that it says; those of others, which tell where they come from, as ever."""
    if category.__module__.partition(".")[0] == "vitrail":
        print(f"vitrail: {message}", file=sys.stderr)
    else:
        otherwise(message, category, *where)
