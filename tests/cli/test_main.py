import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from vitrail.bind.modalities.imu import UnitWarning
from vitrail.cli.main import main
from vitrail.data.loader import LoaderConfig, evaluation_batches
from vitrail.recipes import recipe_names

VITRAIL = Path(sys.executable).parent / "vitrail"


def test_help_names_every_verb_and_loads_no_torch():
    code = "import sys; from vitrail.cli.main import main; main(['--version']); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == ["vitrail 0.1.0", "False"]
    answer = subprocess.run([VITRAIL, "--help"], capture_output=True, text=True, check=True)
    for verb in ("train", "evaluate", "recipes", "recognize", "models", "export", "demo", "completion"):
        assert f"    {verb}" in answer.stdout
    assert answer.stderr == ""


def test_nothing_and_nonsense_are_answered_with_usage(capsys):
    assert main([]) == 2
    assert "usage: vitrail" in capsys.readouterr().out
    for command in (["nonsense"], ["models", "--nonsense"], ["train", "nonsense"]):
        with pytest.raises(SystemExit) as left:
            main(command)
        assert left.value.code == 2
        assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("closed", "command", "status"),
    [("<&-", "recognize classify none -", 1), (">&-", "recipes", 0), ("2>&-", "models none", 1)],
)
def test_a_closed_stream_is_an_empty_one(closed, command, status):
    answer = subprocess.run(f"'{VITRAIL}' {command} {closed}", shell=True, capture_output=True, text=True)
    assert answer.returncode == status
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("chosen", "rounds"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_that_wait_sleep_unless_the_user_has_chosen(monkeypatch, chosen, rounds):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that what is there now comes back
        monkeypatch.delenv(name)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    assert main(["recipes"]) == 0
    assert os.environ.get("GOMP_SPINCOUNT") == rounds


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_verbs_and_recipes(capsys, shell):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "recognize" in script and "xcit_folder" in script


def test_models_and_weights_are_listed(capsys):
    assert main(["models", "xcit_nano*"]) == 0
    assert capsys.readouterr().out.split() == ["xcit_nano_12_p16", "xcit_nano_12_p8"]
    assert main(["models", "xcit_small_12_p16.*", "--weights"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "weights" and any("82.0" in line for line in lines[1:])


def test_recipes_are_listed_and_printed(capsys):
    assert main(["recipes"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["recipe", *recipe_names()]
    assert main(["recipes", "xcit_folder"]) == 0
    assert json.loads(capsys.readouterr().out)["backbone"]["width"] == 192


def test_train_shows_every_field_of_a_recipe(capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", "xcit_folder", "--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0
    for field in ("--data.root", "--validation", "--backbone.width", "--optimizer.lr", "--loop.batch-size"):
        assert field in shown


def test_train_refuses_a_folder_with_a_run_and_resumes_a_finished_one(run, capsys):
    tiny = ["--backbone.width", "32", "--backbone.depth", "2", "--loop.batch-size", "8", "--loop.steps", "2"]
    command = ["train", "xcit_demo", "-o", str(run), *tiny, "--train-transform.size", "32"]
    command += ["--eval-transform.size", "32", "--loader.workers", "0"]
    before = (run / "checkpoints" / "last.safetensors").read_bytes()
    assert main(command) == 1
    assert f"vitrail: The folder {run} already holds a run; go on with it by --resume" in capsys.readouterr().err
    assert main([*command, "--optimizer.lr", "1", "--resume"]) == 1
    assert "another configuration: optimizer.lr (0.001, now 1.0)" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert f"The run of 2 steps is done: {run / 'checkpoints' / 'last.safetensors'}\n" in capsys.readouterr().err
    assert (run / "checkpoints" / "last.safetensors").read_bytes() == before


def test_train_refuses_an_unknown_model(capsys):
    assert main(["train", "xcit_folder", "--model", "resnet9000"]) == 1
    assert capsys.readouterr().err == "vitrail: There is no model resnet9000; `vitrail models` lists them.\n"
    assert main(["train", "xcit_demo", "--model", "xcit_nano_12_p16"]) == 1
    assert "is for one network only; leave out --model" in capsys.readouterr().err


def test_evaluate_prints_a_row_a_resolution_and_writes_its_files(run, photos, tmp_path, capsys):
    files = ["--confusion", str(tmp_path / "c.csv"), "--plot", str(tmp_path / "p.png")]
    command = ["evaluate", str(run), "--data", str(photos / "test"), "--sizes", "32", "48", "--device", "cpu"]
    assert main([*command, *files]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:2] == ["model", "pixels"] and [row[1] for row in rows[1:]] == ["32", "48"]
    assert (tmp_path / "c.csv").read_text().count("\n") == 11
    with Image.open(tmp_path / "p.png") as plot:
        assert plot.size == (600, 432)
    assert main([*command, "--json"]) == 0
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [figure["size"] for figure in figures] == [32, 48]
    assert f"{100 * figures[0]['top1']:.2f}" == rows[1][2]


@pytest.mark.parametrize("option", ["--confusion", "--plot"])
def test_evaluate_finds_out_before_the_work_what_it_cannot_write(run, photos, tmp_path, capsys, option):
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "figure.png"
    assert main(["evaluate", str(run), "--data", str(photos / "test"), "--json", option, str(target)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and f"Cannot write {target}: a file stands where its folder should be" in said.err


def test_classify_takes_files_folders_patterns_and_a_list(run, photos, capsys, monkeypatch):
    folder = photos / "test" / "banana"
    expected = [str(folder / f"{number:02}.webp") for number in range(16)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(expected[:2]) + "\n"))
    everything = [str(path) for path in sorted(folder.parent.glob("*/*.webp"))]
    for images, paths in (
        ([str(folder)], expected),
        ([str(folder.parent)], everything),
        ([f"{folder}/0*.webp"], expected[:10]),
        (["-"], expected[:2]),
    ):
        assert main(["recognize", "classify", str(run), *images, "--json", "--top", "3"]) == 0
        answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [answer["path"] for answer in answers] == paths
        for answer in answers:
            probabilities = [entry["probability"] for entry in answer["classes"]]
            assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)


def test_classify_prints_for_people(run, photos, capsys):
    picture = str(photos / "test" / "banana" / "00.webp")
    assert main(["recognize", "classify", str(run), picture, "--top", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{picture}  ") and out.rstrip().split("% ")[1] in {
        p.name for p in (photos / "test").iterdir()
    }


def test_classify_names_a_broken_file_and_goes_on(run, photos, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    picture = str(photos / "test" / "banana" / "00.webp")
    assert main(["recognize", "classify", str(run), str(tmp_path / "broken.png"), picture]) == 1
    answer = capsys.readouterr()
    assert answer.out.startswith(picture) and answer.out.count("\n") == 1
    assert "broken.png" in answer.err and "1 of 2 files could not be read" in answer.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["RUN", "nowhere.jpg"], "There is no file nowhere.jpg; name files"),
        (["nowhere/model.safetensors", "PICTURE"], "nowhere/model.safetensors"),
        (["nonsense", "PICTURE"], "nonsense"),
        (["RUN", "PICTURE", "--device", "nonsense"], "This machine has no device nonsense"),
        (["RUN", "PICTURE", "--size", "0"], "--size"),
        (["RUN", "PICTURE", "--top", "0"], "--top"),
    ],
)
def test_bad_input_gets_one_sentence(run, photos, capsys, arguments, sentence):
    names = {"RUN": str(run), "PICTURE": str(photos / "test" / "banana" / "00.webp")}
    try:
        code = main(["recognize", "classify", *[names.get(argument, argument) for argument in arguments]])
    except SystemExit as left:
        code = left.code
    answer = capsys.readouterr()
    assert code in (1, 2) and answer.out == ""
    assert sentence in answer.err.splitlines()[-1]


def test_explain_writes_a_picture(run, photos, tmp_path, capsys):
    picture = str(photos / "test" / "banana" / "00.webp")
    for kind in ("class-attention", "norms"):
        target = tmp_path / f"{kind}.png"
        assert main(["recognize", "explain", str(run), picture, "-o", str(target), "--map", kind]) == 0
        assert capsys.readouterr().out == f"Wrote {target}\n"
        with Image.open(target) as drawing:
            assert drawing.width == 288


def test_export_writes_a_file_that_opens_again(run, photos, tmp_path, capsys):
    target = tmp_path / "model.safetensors"
    assert main(["export", str(run), "-o", str(target)]) == 0
    picture = str(photos / "test" / "banana" / "00.webp")
    capsys.readouterr()
    for model in (run, target):
        assert main(["recognize", "classify", str(model), picture, "--json"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_names_that_are_not_utf8_come_out_as_they_went_in(run, photos, tmp_path):
    name = tmp_path / os.fsdecode(b"\xff.webp")
    shutil.copy(photos / "test" / "banana" / "00.webp", name)
    listed = subprocess.run([VITRAIL, "recognize", "classify", run, "-"], input=os.fsencode(name), capture_output=True)
    assert listed.stdout.startswith(os.fsencode(name) + b"  ")
    as_json = subprocess.run([VITRAIL, "recognize", "classify", run, name, "--json"], capture_output=True, check=True)
    assert json.loads(as_json.stdout.decode("utf-8"))["path"] == str(name)


def test_a_reader_who_has_gone_is_no_error(run, photos):
    for command in (["models"], ["train", "xcit_folder", "--help"]):
        with subprocess.Popen([VITRAIL, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.close()
            assert process.stderr.read() == b"" and process.wait() == 141


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), "a.png: No space left on device; mend that"),
        (MemoryError(), "The memory is full; take smaller batches"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "The memory is full; take smaller batches"),
    ],
)
def test_what_the_machine_lacks_is_one_sentence(monkeypatch, capsys, error, sentence):
    def fail(arguments):
        raise error

    monkeypatch.setattr("vitrail.cli.models.run_models", fail)
    assert main(["models"]) == 1
    assert capsys.readouterr().err.startswith(f"vitrail: {sentence}")


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by signal: Killed"),
        (lambda: os._exit(3), "exited unexpectedly with exit code 3"),
    ],
)
def test_a_lost_process_that_reads_data_is_one_sentence(monkeypatch, capsys, ending, reason):
    class Deadly:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            ending()

    def fail(arguments):
        next(evaluation_batches(Deadly(), batch_size=1, loader=LoaderConfig(workers=1)))

    monkeypatch.setattr("vitrail.cli.models.run_models", fail)
    assert main(["models"]) == 1
    assert capsys.readouterr().err == (
        f"vitrail: A process that read data was lost ({reason}); if memory or /dev/shm was full, take smaller "
        "pictures, or in training fewer such processes (--loader.workers).\n"
    )


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def fail(arguments):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("vitrail.cli.models.run_models", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["models"])


def test_warnings_are_one_line(monkeypatch, capsys):
    def run(arguments):
        warnings.warn("It is hardly in the units said.", UnitWarning, stacklevel=1)
        warnings.warn("of somebody else", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr("vitrail.cli.models.run_models", run)
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *where: print(f"shown as ever: {message}", file=sys.stderr)
        assert main(["models"]) == 0
    assert capsys.readouterr().err == "vitrail: It is hardly in the units said.\nshown as ever: of somebody else\n"
    assert warnings.showwarning is before
    with pytest.raises(UnitWarning):  # where warnings are errors, they still are
        main(["models"])


def test_a_pattern_that_nothing_matches_is_named(capsys):
    for options in ([], ["--weights"]):
        assert main(["models", "nonsense*", *options]) == 1
        assert "Nothing is called nonsense*; leave the pattern out" in capsys.readouterr().err


def test_a_picture_that_could_not_be_written_is_refused_before_the_work(run, photos, capsys):
    for option in ("--confusion", "--plot"):
        command = ["evaluate", str(run), "--data", str(photos / "nowhere"), option, "figure"]
        assert main(command) == 1
        assert "Cannot draw figure: its suffix names no format" in capsys.readouterr().err
