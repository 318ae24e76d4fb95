"""A page that carries its pictures with it."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from vitrail.files import write_text

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
img { max-width: 100%; } .verdict { font-size: 1.15rem; border-left: 4px solid #b5422c; padding-left: 1rem; }
"""


class Section(NamedTuple):
    """A heading, a sentence and a PNG that lies beside the page."""

    title: str
    text: str
    picture: str


def write_report(path: Path, title: str, verdict: str, sections: Sequence[Section]) -> None:
    """Writes one HTML file with all pictures inside; it needs no network to be read."""
    body = [f"<h1>{escape(title)}</h1>", f'<p class="verdict">{escape(verdict)}</p>']
    for section in sections:
        data = base64.b64encode((path.parent / section.picture).read_bytes()).decode()
        body += [
            f"<h2>{escape(section.title)}</h2>",
            f"<p>{escape(section.text)}</p>",
            f'<img alt="{escape(section.title)}" src="data:image/png;base64,{data}">',
        ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    page = f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n'
    write_text(path, page + "\n".join(body) + "\n</body></html>\n")
