"""What the benchmarks of binding remember of their runs."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from vitrail.files import write_text


def remembered(path: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What was measured, from the file if it is there; with the minutes, unless the run had been stopped on the way."""
    if not path.exists():
        resumed, begin = path.parent.exists(), time.monotonic()
        found = measure()
        minutes = {} if resumed else {"minutes": (time.monotonic() - begin) / 60}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found | minutes))
    return dict(json.loads(path.read_text()))
