import logging
import multiprocessing
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import vitrail.data.loader as loader_module
from vitrail.data.corrupt import CorruptSample
from vitrail.data.loader import LoaderConfig, evaluation_batches, seeded, training_batches
from vitrail.errors import VitrailError

MAIN = LoaderConfig(workers=0)


class Sample(NamedTuple):
    number: int
    noise: torch.Tensor


class Numbers:
    """Each sample is its own number and three draws, one from each of the global generators."""

    def __init__(self, size, corrupt=()):
        self.size = size
        self.corrupt = corrupt

    def __len__(self):
        return self.size

    def __getitem__(self, number):
        if number in self.corrupt:
            raise CorruptSample(f"{number}.jpg", "it is half a file")
        draws = [torch.rand((), dtype=torch.float64), random.random(), np.random.rand()]
        return Sample(number, torch.tensor(draws))


def gather(batches):
    """All samples of an iterator over batches: the numbers and the noise."""
    batches = list(batches)
    return torch.cat([batch.number for batch in batches]).tolist(), torch.cat([batch.noise for batch in batches])


def test_an_epoch_has_every_sample_once_and_epochs_differ():
    numbers, noise = gather(training_batches(Numbers(32), batch_size=8, steps=8, loader=MAIN))
    assert sorted(numbers[:32]) == sorted(numbers[32:]) == list(range(32))
    assert numbers[:32] != numbers[32:]
    assert len(noise.unique()) == noise.numel()


def test_the_order_is_the_permutation_of_seed_and_epoch():
    numbers, _ = gather(training_batches(Numbers(10), batch_size=64, steps=2, seed=5, loader=MAIN))
    epochs = [np.random.default_rng((5, epoch)).permutation(10) for epoch in range(13)]
    assert numbers == np.concatenate(epochs)[:128].tolist()


def test_workers_change_nothing():
    settings = {"batch_size": 6, "steps": 5, "seed": 3}
    expected = gather(training_batches(Numbers(7), **settings, loader=MAIN))
    for workers in (1, 2):
        numbers, noise = gather(training_batches(Numbers(7), **settings, loader=LoaderConfig(workers=workers)))
        assert numbers == expected[0]
        assert torch.equal(noise, expected[1])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_share_each_batch(accumulate):
    settings = {"batch_size": 8, "steps": 3, "loader": MAIN}
    whole = list(training_batches(Numbers(11), **settings))
    ranks = [
        list(training_batches(Numbers(11), **settings, accumulate=accumulate, rank=rank, world_size=2))
        for rank in range(2)
    ]
    assert [len(rank) for rank in ranks] == [3 * accumulate] * 2
    for step, batch in enumerate(whole):
        parts = [rank[step * accumulate + micro] for micro in range(accumulate) for rank in ranks]
        assert torch.equal(torch.cat([part.number for part in parts]), batch.number)
        assert torch.equal(torch.cat([part.noise for part in parts]), batch.noise)


def test_starting_later_seeks():
    settings = {"batch_size": 4, "steps": 9, "accumulate": 2, "loader": MAIN}
    whole = list(training_batches(Numbers(10), **settings))
    rest = list(training_batches(Numbers(10), **settings, start=6))
    assert len(rest) == 6
    for one, other in zip(whole[12:], rest, strict=True):
        assert torch.equal(one.number, other.number)
        assert torch.equal(one.noise, other.noise)
    assert not list(training_batches(Numbers(10), **settings, start=9))


def test_a_late_start_costs_no_more_than_an_early_one():
    begin = time.perf_counter()
    late = training_batches(Numbers(1000), batch_size=8, steps=10**12 + 1, start=10**12, loader=MAIN)
    assert len(next(late).number) == 8
    assert time.perf_counter() - begin < 1


def test_millions_of_samples():
    batches = training_batches(Numbers(3_000_000), batch_size=256, steps=10**9, loader=MAIN)
    numbers = next(batches).number
    assert len(numbers.unique()) == 256
    assert numbers.max() > 2_500_000


def test_repeats():
    settings = {"batch_size": 10, "steps": 2, "seed": 1}
    numbers, noise = gather(training_batches(Numbers(10), **settings, loader=LoaderConfig(workers=0, repeats=3)))
    first, second = (np.random.default_rng((1, epoch)).permutation(10)[:4] for epoch in range(2))
    apart = [0, 3, 6, 9, 1, 4, 7, 2, 5, 8]
    assert numbers == [*np.repeat(first, 3)[apart], *np.repeat(second, 3)[apart]]
    assert len(noise.unique()) == noise.numel()  # repeated, but augmented anew


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (2, 1), (2, 2), (8, 1)])
def test_repeats_are_no_neighbours(processes, accumulate):
    """Which mixup blends, the first with the last."""
    settings = {"batch_size": 96, "steps": 3, "accumulate": accumulate, "world_size": processes}
    loader = LoaderConfig(workers=0, repeats=3)
    for rank in range(processes):
        for batch in training_batches(Numbers(1000), **settings, rank=rank, loader=loader):
            assert (batch.number != batch.number.roll(1)).all()


def test_seeds_differ():
    settings = {"batch_size": 8, "steps": 1, "loader": MAIN}
    one, other = (gather(training_batches(Numbers(8), **settings, seed=seed)) for seed in (0, 1))
    assert one[0] != other[0]
    assert not np.isin(one[1], other[1]).any()


def test_global_generators_are_left_alone():
    def draw():
        return torch.rand(2).tolist(), random.random(), np.random.rand()

    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    expected = draw()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    gather(training_batches(Numbers(8), batch_size=4, steps=2, loader=MAIN))
    gather(training_batches(Numbers(8), batch_size=4, steps=2, loader=LoaderConfig(workers=1)))
    assert draw() == expected


def test_seeded_restores_after_an_error():
    state = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(0, 1):
        torch.rand(1)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_reads_every_sample_once_in_order():
    dataset = Numbers(11)
    assert gather(evaluation_batches(dataset, batch_size=4, loader=MAIN))[0] == list(range(11))
    ranks = [gather(evaluation_batches(dataset, batch_size=4, rank=r, world_size=3, loader=MAIN))[0] for r in range(3)]
    assert ranks == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8]]
    assert gather(evaluation_batches(dataset, batch_size=4, loader=LoaderConfig(workers=2)))[0] == list(range(11))


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_stops_with_one_sentence(workers):
    loader = LoaderConfig(workers=workers)
    for batches in (
        training_batches(Numbers(6, corrupt={4}), batch_size=3, steps=2, loader=loader),
        evaluation_batches(Numbers(6, corrupt={4}), batch_size=3, loader=loader),
    ):
        with pytest.raises(VitrailError) as caught:
            list(batches)
        assert type(caught.value) is CorruptSample
        assert (caught.value.path, caught.value.reason) == ("4.jpg", "it is half a file")
        assert str(caught.value).startswith("Cannot read 4.jpg: it is half a file; ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_is_replaced_in_training(workers, caplog):
    loader = LoaderConfig(workers=workers, on_corrupt="skip")
    expected = gather(training_batches(Numbers(6), batch_size=3, steps=4, loader=MAIN))[0]
    batches = training_batches(Numbers(6, corrupt={4, 5}), batch_size=3, steps=4, loader=loader)
    with caplog.at_level(logging.WARNING):
        numbers, noise = gather(batches)
    assert numbers == [0 if number in (4, 5) else number for number in expected]
    assert noise.shape == (12, 3)
    assert batches.corrupt == {"4.jpg": "it is half a file", "5.jpg": "it is half a file"}
    assert sorted(record.args[0] for record in caplog.records) == ["4.jpg", "5.jpg"]


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_is_left_out_of_an_evaluation(workers):
    loader = LoaderConfig(workers=workers, on_corrupt="skip")
    batches = evaluation_batches(Numbers(7, corrupt={1, 2, 3, 6}), batch_size=2, loader=loader)
    assert [batch.number.tolist() for batch in batches] == [[0], [4, 5]]
    assert list(batches.corrupt) == ["1.jpg", "2.jpg", "3.jpg", "6.jpg"]


def test_nothing_readable():
    loader = LoaderConfig(workers=0, on_corrupt="skip")
    with pytest.raises(VitrailError, match="None of the 3 samples can be read"):
        next(training_batches(Numbers(3, corrupt={0, 1, 2}), batch_size=2, steps=1, loader=loader))


def test_bad_settings():
    with pytest.raises(VitrailError, match="choose a batch size that is a multiple of 6"):
        training_batches(Numbers(8), batch_size=8, steps=1, accumulate=3, world_size=2)
    with pytest.raises(VitrailError, match="The data set is empty"):
        training_batches(Numbers(0), batch_size=8, steps=1)
    with pytest.raises(VitrailError, match=r"LoaderConfig\.repeats is 0; it must be at least 1"):
        LoaderConfig(repeats=0)
    with pytest.raises(VitrailError, match=r"^Of 8 images 9 repeats would leave one; choose fewer repeats\.$"):
        training_batches(Numbers(8), batch_size=4, steps=1, loader=LoaderConfig(workers=0, repeats=9))
    with pytest.raises(VitrailError, match="batch size is 0"):
        evaluation_batches(Numbers(8), batch_size=0)


@pytest.mark.skipif(sys.platform != "linux", reason="only there it is known who sent a signal")
@pytest.mark.parametrize("name", ["INT", "TERM"])
@pytest.mark.parametrize("begun", [True, False])
def test_workers_outlive_a_signal_to_the_whole_group(name, begun, monkeypatch):
    begin = loader_module._heed_the_parent_alone
    monkeypatch.setattr(loader_module, "_heed_the_parent_alone", lambda worker: (time.sleep(1 - begun), begin(worker)))
    settings = {"batch_size": 4, "steps": 20}
    batches = training_batches(Numbers(7), **settings, loader=LoaderConfig(workers=2))
    first = [next(batches), next(batches)] if begun else []  # one of each worker
    workers = multiprocessing.active_children()
    subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
    numbers, _ = gather([*first, *batches])
    assert len(workers) == 2 and numbers == gather(training_batches(Numbers(7), **settings, loader=MAIN))[0]


@pytest.mark.skipif(sys.platform != "linux", reason="only there it is known who sent a signal")
def test_workers_heed_a_signal_of_their_parent():
    batches = training_batches(Numbers(7), batch_size=4, steps=20, loader=LoaderConfig(workers=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


def test_spawned_workers_make_the_same_batches(tmp_path):
    """In a process of its own, where the start method can be chosen."""
    script = tmp_path / "spawned.py"
    script.write_text(
        "import multiprocessing\n"
        "from vitrail.data.augmentation import EvalTransform\n"
        "from vitrail.data.datasets import ImageFolder\n"
        "from vitrail.data.loader import LoaderConfig, training_batches\n"
        "def main(workers):\n"
        f"    dataset = ImageFolder({str(PHOTOS)!r}, EvalTransform(32).build())\n"
        "    batches = training_batches(dataset, batch_size=4, steps=2, loader=LoaderConfig(workers=workers))\n"
        "    return [batch.image.double().sum().item() for batch in batches]\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    assert main(1) == main(0)\n"
    )
    subprocess.run([sys.executable, "-W", "error", script], check=True, timeout=120)


PHOTOS = Path(__file__).parents[2] / "src" / "vitrail" / "demo" / "photos" / "test"
