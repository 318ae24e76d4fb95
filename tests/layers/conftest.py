"""Processes of their own, as the engine's tests have them."""

import importlib.util
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("engine_conftest", Path(__file__).parents[1] / "engine" / "conftest.py")
_ENGINE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_ENGINE)
forked = _ENGINE.forked
