import math

import pytest
import torch
from PIL import Image

from vitrail.backbones.xcit import XCiTConfig
from vitrail.errors import VitrailError
from vitrail.pretrain.dino import Crops, DINOTask, HeldOutView, Views
from vitrail.pretrain.views import View


@pytest.fixture
def task(tiny) -> DINOTask:
    torch.manual_seed(0)
    return tiny("dino", teacher_temperature=(0.04, 0.07)).build_task()


@pytest.fixture
def batch() -> Views:
    generator = torch.Generator().manual_seed(1)
    return Views(torch.randn(3, 2, 3, 32, 32, generator=generator), torch.randn(3, 2, 3, 16, 16, generator=generator))


def test_the_views_are_two_large_and_some_small():
    picture = Image.new("RGB", (40, 30), "red")
    views = Crops(View(size=24), View(size=24), View(size=16), count=3).build()(picture)
    assert views.large.shape == (2, 3, 24, 24) and views.small.shape == (3, 3, 16, 16)
    assert Crops(View(size=24), View(size=24), View(size=16), count=0).build()(picture).small.shape == (0, 3, 16, 16)


@torch.no_grad()
def test_the_loss_is_the_equation(task, batch):
    """Mean over pairs of different views of H(teacher, student), in float64."""
    task.center.normal_()
    task.progress.fill_(0.05)  # half of the warm-up: 0.055
    loss = task(batch, "train")["loss"]

    def outputs(network, head, view):
        return head(network.forward_features(view).class_token).double()

    large, small = batch.large.unbind(1), batch.small.unbind(1)
    targets = [((outputs(task.backbone, task.head, v) - task.center.double()) / 0.055).softmax(1) for v in large]
    said = [outputs(task.student.backbone, task.student.head, view) / 0.1 for view in (*large, *small)]
    pairs = [(i, j) for i in range(2) for j in range(4) if i != j]
    assert len(pairs) == 6
    costs = [-(targets[i] * said[j].log_softmax(1)).sum(1).mean() for i, j in pairs]
    assert float(loss) == pytest.approx(float(sum(costs) / 6), rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_center_follows_what_the_teacher_says(task, batch, accumulate):
    """Once a step, whatever the number of micro batches; and not before the step is done."""
    expected = []
    for part in range(accumulate):
        views = Views(batch.large + part, batch.small)
        with torch.no_grad():
            said = [task.head(task.backbone.forward_features(view).class_token) for view in views.large.unbind(1)]
        expected.append(torch.cat(said).double().mean(dim=0))
        task(views, "train")
        assert not task.center.any()
    task.after_step(0, 10)
    wanted = 0.1 * torch.stack(expected).mean(dim=0)
    torch.testing.assert_close(task.center.double(), wanted, rtol=1e-5, atol=1e-7)
    assert not task.seen.any()


def test_the_teacher_has_no_gradient_and_follows_the_student(task, batch):
    task(batch, "train")["loss"].backward()
    assert all(parameter.grad is None for part in (task.backbone, task.head) for parameter in part.parameters())
    assert [name for name, parameter in task.student.named_parameters() if parameter.grad is None] == []
    (phase,) = task.phases().values()
    optimized = {id(parameter) for group in phase.optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in task.student.parameters()}
    with torch.no_grad():
        for parameter in task.student.parameters():
            parameter += 1
    before = {name: value.double().clone() for name, value in task.backbone.named_parameters()}
    step, steps = 3, 10
    task.after_step(step, steps)
    momentum = 1 - (1 - 0.996) * (math.cos(math.pi * step / steps) + 1) / 2
    for name, value in task.backbone.named_parameters():
        student = task.student.backbone.get_parameter(name).double()
        torch.testing.assert_close(value.double(), momentum * before[name] + (1 - momentum) * student)
    assert float(task.progress) == pytest.approx(0.4)


def test_at_the_beginning_the_last_layer_stays(task, batch):
    task(batch, "train")["loss"].backward()
    assert not task.student.head.prototypes.grad.any()
    assert task.student.head.layers[0].weight.grad.any()
    task.zero_grad()
    task.progress.fill_(0.5)
    task(batch, "train")["loss"].backward()
    assert task.student.head.prototypes.grad.any()


def test_student_and_teacher_start_alike_and_only_the_student_is_regularised(tiny):
    task = tiny("dino", backbone={"drop_path": 0.4}).build_task()
    for name, value in task.student.backbone.state_dict().items():
        assert torch.equal(task.backbone.state_dict()[name], value)
    assert task.backbone.blocks[1].drop_path.rate == 0 and task.student.backbone.blocks[1].drop_path.rate == 0.4


def test_an_xcit_learns_as_well(tiny, batch):
    task = tiny("dino")
    task = DINOTask(type(task)(**vars(task) | {"backbone": XCiTConfig(width=16, depth=1, heads=2, patch_size=8)}))
    loss = task(batch, "train")["loss"]
    loss.backward()
    assert math.isfinite(loss.item()) and task.student.backbone.patches[0][0].weight.grad.any()


def test_an_evaluation_tells_of_each_image(task, batch):
    images = torch.randn(3, 3, 32, 32)
    found = task.eval()(HeldOutView(*batch, images, torch.tensor([0, -1, 1])), "evaluate")
    assert {name: term.shape for name, term in found["terms"].items()} == {
        "teacher_loss": (3,),
        "teacher_entropy": (3,),
    }
    torch.testing.assert_close(found["features"], task.backbone.forward_features(images).class_token)
    torch.testing.assert_close(found["terms"]["teacher_loss"].mean(), task(batch, "train")["loss"])
    assert float(found["terms"]["teacher_entropy"].max()) <= math.log(32) + 1e-5


def test_impossible_values_are_refused(tiny):
    with pytest.raises(VitrailError, match="teacher_temperature is 0"):
        tiny("dino", teacher_temperature=(0.0, 0.1))
    with pytest.raises(VitrailError, match="momentum is 2"):
        tiny("dino", momentum=2)
