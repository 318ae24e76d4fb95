from pathlib import Path

import pytest

from vitrail.engine.curves import Curves, read_curves, turning_point
from vitrail.errors import FileError


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path):
    with Curves(tmp_path, 0) as curves:
        curves.add(1, {"train/loss": 0.1 + 0.2}, clock={"images_per_second": 5.0})
        curves.add(2, {"train/loss": 2.0})
        curves.add(3, {"train/loss": 3.0})
        curves.flush()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,train/lo")  # killed while it wrote
    with Curves(tmp_path, 2) as curves:
        curves.add(3, {"train/loss": 30.0})
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,name,value\n1,train/loss,0.30000000000000004\n2,train/loss,2.0\n3,train/loss,30.0\n"
    )
    assert read_curves(tmp_path) == {"train/loss": [(1, 0.1 + 0.2), (2, 2.0), (3, 30.0)]}


def test_a_fresh_run_starts_fresh_curves(tmp_path: Path):
    for _ in range(2):
        with Curves(tmp_path, 0) as curves:
            curves.add(1, {"x": 1.0})
    assert read_curves(tmp_path) == {"x": [(1, 1.0)]}
    with pytest.raises(FileError, match="There are no curves"):
        read_curves(tmp_path / "elsewhere")


def test_tensorboard_shows_the_resumed_curve_alone(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, values in ((0, (1.0, 2.0, 3.0)), (2, (30.0, 40.0))):
        with Curves(tmp_path, start) as curves:
            for step, value in enumerate(values, start + 1):
                curves.add(step, {"loss": value})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 30), (4, 40)]


@pytest.mark.parametrize("damage", [b"x,train/loss,1.0\n", b"1,train/loss\n", b"1,train/loss,much\n", b"1,\xff,1.0\n"])
def test_damaged_curves_are_named(tmp_path: Path, damage):
    (tmp_path / "metrics.csv").write_bytes(b"step,name,value\n" + damage)
    with pytest.raises(FileError, match=r"The curves .*metrics\.csv are damaged; delete the file"):
        read_curves(tmp_path)
    with pytest.raises(FileError, match="are damaged"):
        Curves(tmp_path, 1)


def test_the_turning_point_is_told_once():
    losses = [5.0, 4.0, 4.1, 3.0, 3.1, 3.2, 3.3, 3.4, 2.0, 2.1, 2.2, 2.3, 2.4]
    curve = [(10 * number, loss) for number, loss in enumerate(losses)]
    found = [turning_point(curve[:end]) for end in range(len(curve) + 1)]
    assert found == [None] * 8 + [30] + [None] * 5  # after four values above the least, that of step 30; not again
    assert turning_point(curve[:6], patience=2) == 30


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([4.0, 3.0, 3.2, 3.1, 3.4, 3.3], 1),  # rises, though not in each evaluation
        ([4.0, 3.0, 3.4, 3.3, 3.2, 3.1], None),  # falls again after a jump
        ([4.0, 3.0, 3.1, 3.1, 3.1, 3.1], None),  # has come to rest
        ([4.0, 3.5, 3.6, 3.4, 3.5, 3.3], None),  # falls, though not in each evaluation
    ],
)
def test_single_values_make_no_turn(losses, expected):
    assert turning_point(list(enumerate(losses))) == expected
