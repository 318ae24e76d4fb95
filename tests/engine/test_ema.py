import torch
from torch import nn

from vitrail.engine.ema import MovingAverage


def values(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_average_is_the_recurrence_and_leaves_the_module_alone():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = MovingAverage(module, decay=0.75)
    expected = {name: value.double() for name, value in values(module).items()}
    for _ in range(5):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        module(torch.randn(4, 3))  # moves the batch norm's buffers
        average.update()
        for name, value in module.state_dict().items():
            expected[name] = 0.75 * expected[name] + 0.25 * value.double() if value.is_floating_point() else value
    before = values(module)
    with average.applied():
        applied = values(module)
    for name, value in expected.items():
        torch.testing.assert_close(applied[name].double(), value.double(), rtol=0, atol=1e-6)
    assert applied["1.num_batches_tracked"] == 5
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not torch.equal(before["0.weight"], applied["0.weight"])


def test_reset_starts_from_the_module():
    module = nn.Linear(2, 2)
    average = MovingAverage(module, decay=0.5)
    with torch.no_grad():
        module.weight.fill_(3.0)
    average.reset()
    with average.applied():
        assert torch.equal(module.weight, torch.full((2, 2), 3.0))
