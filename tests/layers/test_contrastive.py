import torch
import torch.distributed

from vitrail.layers.contrastive import info_nce


def equation(first: torch.Tensor, second: torch.Tensor, temperature: float) -> float:
    """Equation 4.2 in float64, both ways, term by term; the mean of -log."""
    first, second = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (first, second))
    total = 0.0
    for a, b in ((first, second), (second, first)):
        for i in range(len(a)):
            terms = [(a[i] @ b[j] / temperature).exp() for j in range(len(b))]
            total -= float((terms[i] / sum(terms)).log()) / (2 * len(a))
    return total


def test_info_nce_is_the_equation():
    torch.manual_seed(0)
    first, second = torch.randn(5, 7), torch.randn(5, 7)
    for temperature in (0.2, 1.0):
        loss = info_nce(first, second, temperature)
        torch.testing.assert_close(loss.double(), torch.tensor(equation(first, second, temperature)).double())
    assert float(info_nce(first, second)) == float(info_nce(second, first))  # symmetric
    torch.testing.assert_close(info_nce(3 * first, second / 9), info_nce(first, second))  # of directions


def test_alike_and_apart_is_the_best():
    same = torch.eye(4)
    best = float(info_nce(same, same))
    expected = -torch.log_softmax(torch.tensor([5.0, 0.0, 0.0, 0.0]), dim=0)[0]
    assert abs(best - float(expected)) < 1e-6
    assert best < float(info_nce(same, same.roll(1, dims=0)))


def test_with_one_image_there_is_nothing_to_tell_apart():
    assert float(info_nce(torch.randn(1, 3), torch.randn(1, 3))) == 0


def test_two_processes_are_one_with_their_images_together(forked, tmp_path):
    torch.manual_seed(1)
    first, second = (torch.randn(6, 5, requires_grad=True) for _ in range(2))
    expected = torch.autograd.grad(whole := info_nce(first, second), (first, second))

    def work(rank: int) -> None:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
        own = [part.detach()[3 * rank : 3 * rank + 3].requires_grad_() for part in (first, second)]
        loss = info_nce(*own)
        gradients = torch.autograd.grad(loss, own)
        alone = info_nce(own[0].detach(), own[1].detach(), gather=False)
        torch.save([loss.detach(), *gradients, alone], tmp_path / f"{rank}.pt")
        torch.distributed.destroy_process_group()

    processes = forked(work, world_size=2)
    assert processes.wait() == [0, 0], processes.log.read_text()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close((found[0][0] + found[1][0]) / 2, whole.detach())
    for number, gradient in enumerate(expected, 1):  # the mean over processes, as DDP takes it, of the sums
        torch.testing.assert_close(torch.cat([found[0][number], found[1][number]]) / 2, gradient)
    for rank in range(2):
        part = slice(3 * rank, 3 * rank + 3)
        torch.testing.assert_close(found[rank][3], info_nce(first[part], second[part]).detach())


def test_the_temperature_is_learned():
    torch.manual_seed(2)
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    temperature = torch.tensor(0.2, requires_grad=True)
    info_nce(first, second, temperature).backward()
    near = (equation(first, second, 0.2 + 1e-5) - equation(first, second, 0.2 - 1e-5)) / 2e-5
    assert abs(float(temperature.grad) - near) < 1e-4 * abs(near)
