"""Trains XCiT on the bundled photos, evaluates it, explains two pictures, and writes a report."""

import json
import shutil
from pathlib import Path

from vitrail.demo.report import Picture, Section, check_folder, write_report
from vitrail.engine.curves import read_curves
from vitrail.errors import VitrailError
from vitrail.plots import new_figure, save_figure
from vitrail.recipes import load_recipe, train
from vitrail.recognize.classify import Classification
from vitrail.recognize.evaluate import evaluate_at, plot_resolutions, write_confusion
from vitrail.recognize.explain import explain
from vitrail.weights import load_classifier

# Neither is special: the eighth test photo of two classes that look nothing alike.
_EXPLAINED = ("banana/07.webp", "tomato/07.webp")
_PICTURES = ("curves.png", "confusion.png", "resolutions.png", "attention.png", "norms.png")


def run_demo(output: str | Path) -> int:
    """Writes the run, its pictures and `report.html` to the folder `output`; gives the exit status.

    Raises:
        VitrailError: `output` holds something other than an earlier demo.
    """
    folder = Path(output)
    experiment = load_recipe("xcit_demo")
    assert isinstance(experiment, Classification) and experiment.validation
    _make_room(folder, experiment)
    print(f"Training a small XCiT from scratch on the photos in {experiment.data.root} ...")
    result = train(experiment, folder / "run")
    classifier = load_classifier(result.folder)

    print("Evaluating it at three resolutions ...")
    data = type(experiment.data)(experiment.validation)
    size = classifier.transform.size
    evaluations = [evaluate_at(classifier, data, pixels) for pixels in (size - 16, size, size + 32)]
    accuracies = [(evaluation.size, evaluation.metric.compute()["top1"]) for evaluation in evaluations]
    metric = evaluations[1].metric
    plot_resolutions({"XCiT": accuracies}, folder / "resolutions.png")
    write_confusion(metric.confusion, classifier.classes, folder / "confusion.png")
    _plot_curves(result.folder, folder / "curves.png")

    print("Drawing what it looks at ...")
    pictures = [experiment.validation / name for name in _EXPLAINED]
    explain(classifier, pictures, folder / "attention.png")
    explain(classifier, pictures, folder / "norms.png", kind="norms")

    photos, top1 = int(metric.confusion.sum()), metric.compute()["top1"]
    classes = len(classifier.classes)
    verdict = (
        f"{top1:.1%} of {photos} test photos are named correctly (chance: {1 / classes:.0%}), "
        f"after {result.seconds:.0f} seconds of training from scratch on {len(experiment.train_dataset())} photos."
    )
    sections = [
        Section(heading, text, [[Picture(picture)]])
        for heading, text, picture in (
            ("Training", "Loss and accuracy on the test photos, step by step.", "curves.png"),
            ("Confusion", "Rows are what the photos show, columns what the model says.", "confusion.png"),
            ("Resolution", "One model, tested at the size that it was trained at, and at others.", "resolutions.png"),
            ("Class attention", "Where each head of the class token looks (the last block).", "attention.png"),
            ("Queries and keys", "Norms of each patch's queries and keys (the last layer).", "norms.png"),
        )
    ]
    write_report(folder / "report.html", "XCiT on ten kinds of groceries", verdict, sections)
    print(f"\n{verdict}\nReport: {folder / 'report.html'}")
    print(f"Try it: vitrail recognize classify {result.folder} {pictures[0]}")
    return 0


def _make_room(folder: Path, experiment: Classification) -> None:
    """Deletes the run of an earlier demo, and nothing else."""
    run = folder / "run"
    check_folder(folder, {run.name, "report.html", *_PICTURES})
    if run.exists():
        configuration = run / "config.json"
        if not configuration.exists() or json.dumps(str(experiment.data.root)) not in configuration.read_text():
            raise VitrailError(f"{folder} holds something else than an earlier demo; give another one by -o.")
        shutil.rmtree(run)


def _plot_curves(run: Path, path: Path) -> None:
    curves = read_curves(run)
    figure = new_figure(8, 3)
    losses, accuracies = figure.subplots(1, 2)
    for name in ("train/loss", "validation/loss"):
        losses.plot(*zip(*curves[name], strict=True), label=name)
    losses.set_xlabel("step")
    losses.set_ylabel("cross-entropy (nats)")
    losses.legend()
    steps, values = zip(*curves["validation/top1"], strict=True)
    accuracies.plot(steps, [100 * value for value in values], marker="o")
    accuracies.set_xlabel("step")
    accuracies.set_ylabel("top-1 accuracy (%)")
    save_figure(figure, path)
