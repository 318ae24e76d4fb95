import numpy as np
import pytest
import torch
from tests.compress.toy_codec import TinyPrior

from vitrail.compress.coding.coder import Decoder, Encoder
from vitrail.compress.coding.frequencies import frequencies, levels, normalize
from vitrail.compress.coding.grid import Grid, GridCoder
from vitrail.compress.stages import Scheme

PARTS, CENTROIDS = 2, 16
MARGINALS = normalize(1 + np.arange(PARTS * CENTROIDS).reshape(PARTS, CENTROIDS) * 7 % 40)


@pytest.fixture
def coder() -> GridCoder:
    return GridCoder(TinyPrior(PARTS, CENTROIDS).double(), MARGINALS)


def indices_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, CENTROIDS, (height, width, PARTS))


def unknown(indices: np.ndarray) -> Grid:
    return Grid(np.zeros_like(indices), np.zeros(indices.shape[:2], dtype=bool))


@pytest.mark.parametrize(
    "scheme",
    [Scheme(), Scheme("raster"), Scheme("marginal"), Scheme("confidence_linear", 4), Scheme("confidence_doubling", 3)],
)
def test_the_decoder_fills_in_what_the_encoder_was_given(coder, scheme):
    given = indices_of(5, 7)
    encoder = Encoder()
    grid = Grid(given.copy(), np.zeros((5, 7), dtype=bool))
    stages = list(coder.stages(encoder, scheme, grid))
    assert [stage for stage, _ in stages] == list(range(len(scheme.counts(5, 7)))) and stages[-1][1]
    assert grid.known.all()

    decoded = unknown(given)
    assert list(coder.stages(Decoder(encoder.finish()), scheme, decoded)) == stages
    np.testing.assert_array_equal(decoded.indices, given)


def test_stages_cost_what_marginals_and_prior_say(coder):
    given = indices_of(8, 8)
    scheme = Scheme("quincunx", 2)
    encoder = Encoder()
    for _ in coder.stages(encoder, scheme, Grid(given.copy(), np.zeros((8, 8), dtype=bool))):
        pass

    first = scheme.partition(8, 8).numpy() == 0
    shares = (MARGINALS + 1) / (MARGINALS + 1).sum(axis=1, keepdims=True)
    bits = -np.log2(shares[np.arange(PARTS), given[first]]).sum()
    known = torch.from_numpy(first)[None]
    logits = coder.prior(torch.from_numpy(np.where(first[..., None], given, 0))[None], known)[0].detach().numpy()
    tables = frequencies(levels(logits[~first], 0)) + 1.0
    picked = np.take_along_axis(tables, given[~first][..., None], axis=-1)[..., 0]
    bits -= np.log2(picked / tables.sum(axis=-1)).sum()
    assert 8 * len(encoder.finish()) == pytest.approx(bits, abs=0.02 * bits + 8 * (1 + 1 + 3 + 4))


def test_what_is_not_known_becomes_the_most_probable(coder):
    given = indices_of(6, 6)
    grid = unknown(given)
    grid.known[::2] = True
    grid.indices[::2] = given[::2]
    expected = coder.prior(torch.from_numpy(grid.indices)[None], torch.from_numpy(grid.known)[None])[0].argmax(dim=-1)
    coder.complete(grid)
    np.testing.assert_array_equal(grid.indices[::2], given[::2])
    np.testing.assert_array_equal(grid.indices[1::2], expected.numpy()[1::2])
    assert grid.known.sum() == 18


def test_a_prior_of_less_than_float64_is_refused(coder):
    single = GridCoder(coder.prior.float(), MARGINALS)
    with pytest.raises(TypeError, match="float32"):
        list(single.stages(Encoder(), Scheme(), Grid(indices_of(4, 4), np.zeros((4, 4), dtype=bool))))
