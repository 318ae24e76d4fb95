"""The sentence on a damaged file names options that there are."""

from dataclasses import replace

from vitrail.cli.main import build_parser
from vitrail.data.corrupt import CorruptSample
from vitrail.recipes import load_recipe


def test_the_advice_is_right():
    sentence = str(CorruptSample("a.jpg", "it is empty"))
    assert sentence == (
        "Cannot read a.jpg: it is empty; mend or remove it, or skip such files: --on-corrupt skip, in training "
        "--loader.on-corrupt skip."
    )
    evaluate = build_parser().parse_args(["evaluate", "model", "--data", "photos", "--on-corrupt", "skip"])
    assert evaluate.on_corrupt == "skip"
    loader = load_recipe("xcit_folder").loader
    assert replace(loader, on_corrupt="skip").on_corrupt == "skip"
