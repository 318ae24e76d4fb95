"""A page that carries its pictures with it."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from vitrail.errors import VitrailError
from vitrail.files import write_text

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; } img { max-width: 100%; }
.verdict { font-size: 1.15rem; border-left: 4px solid #b5422c; padding-left: 1rem; overflow-wrap: anywhere; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: 0.8rem; margin: 0.8rem 0; }
figure { margin: 0; } figcaption { font-size: 0.85rem; color: #555; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f1ec; padding: 0.8rem; }
"""


class Picture(NamedTuple):
    """A PNG that lies beside the page, and the line below it."""

    file: str
    caption: str = ""


class Section(NamedTuple):
    """A heading, a sentence, perhaps a text to be shown as it is, and rows of pictures."""

    title: str
    text: str
    rows: Sequence[Sequence[Picture]]
    verbatim: str = ""


def write_report(path: Path, title: str, verdict: str, sections: Sequence[Section]) -> None:
    """Writes one HTML file with all pictures inside; it needs no network to be read."""
    body = [f"<h1>{escape(title)}</h1>", f'<p class="verdict">{escape(verdict)}</p>']
    for section in sections:
        body += [f"<h2>{escape(section.title)}</h2>", f"<p>{escape(section.text)}</p>"]
        if section.verbatim:
            body.append(f"<pre>{escape(section.verbatim)}</pre>")
        for row in section.rows:
            figures = [_figure(path.parent / picture.file, picture.caption or section.title) for picture in row]
            body.append(f'<div class="row">{"".join(figures)}</div>')
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    page = f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n'
    write_text(path, page + "\n".join(body) + "\n</body></html>\n")


def _figure(file: Path, caption: str) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def check_folder(folder: Path, known: set[str]) -> None:
    """Refuses to write a demo where anything but an earlier one lies.

    Raises:
        VitrailError: `folder` is a file, or holds names that are not in `known`.
    """
    if folder.exists() and (not folder.is_dir() or any(path.name not in known for path in folder.iterdir())):
        raise VitrailError(f"{folder} holds something else than an earlier demo; give another one by -o.")
