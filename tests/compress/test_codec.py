import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.compress import Codec, CodecError, DamageError, DamageWarning, FormatError, ModelError, Scheme
from vitrail.compress.codec import MAX_PIXELS
from vitrail.compress.coding.bitstream import Header
from vitrail.errors import VitrailError

SCHEMES = [
    Scheme(),
    Scheme("quincunx", 2),
    Scheme("quincunx", 9),
    Scheme("marginal", 1),
    Scheme("raster", 1),
    Scheme("confidence_linear", 4),
    Scheme("confidence_doubling", 5),
]


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (max(1, height // 5), max(1, width // 5), 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def indices_of(codec, image, quality):
    """What the autoencoder makes of the picture, padded by hand."""
    pixels = np.array(image)
    factor = codec.autoencoder.factor
    pixels = np.pad(pixels, ((0, -pixels.shape[0] % factor), (0, -pixels.shape[1] % factor), (0, 0)), mode="symmetric")
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    return codec.autoencoder.encode(images)[:, :, :, :quality]


def shown(codec, indices, image):
    pixels = (codec.autoencoder.decode(indices)[0] * 255).round().byte().permute(1, 2, 0).numpy(force=True)
    return pixels[: image.height, : image.width]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 70), (65, 2), (50, 37), (64, 64)], ids=str)
def test_the_indices_make_the_round_trip(make_codec, scheme, size):
    codec, image = make_codec(), picture(*size)
    data = codec.compress(image, scheme=scheme)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = codec.decompress(data)
    assert decoded.size == size
    assert (np.array(decoded) == shown(codec, indices_of(codec, image, 2), image)).all()
    report = codec.inspect(data)
    assert report.damage is None
    assert len(report.stages) == report.total_stages == len(scheme.counts(*report.grid))
    assert sum(stage.positions for stage in report.stages) == report.grid[0] * report.grid[1]


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    parts=st.integers(1, 4),
    centroids=st.sampled_from([2, 5, 256]),
    stages=st.integers(1, 10),
    data=st.data(),
)
def test_the_round_trip_of_any_size_quality_and_model(make_codec, width, height, parts, centroids, stages, data):
    codec, image = make_codec(parts, centroids), picture(width, height, width)
    quality = data.draw(st.integers(1, parts))
    kind = data.draw(st.sampled_from(["quincunx", "confidence_linear", "confidence_doubling"]))
    decoded = codec.decode(codec.compress(image, quality, Scheme(kind, stages)))
    assert decoded.damage is None
    assert (np.array(decoded.image) == shown(codec, indices_of(codec, image, quality), image)).all()


@pytest.mark.parametrize("quality", [1, 2, 4])
def test_the_overhead_of_256_by_256_pixels_is_at_most_16_bytes(make_codec, quality):
    """The bytes that are not indices: what the file has beyond the code length of the indices alone."""
    codec = make_codec(4, 256, 16)
    for seed in range(10):
        data = codec.compress(picture(256, 256, seed), quality)
        report = codec.inspect(data)
        checks = 4 * 8 + 24
        indices = sum(stage.bits for stage in report.stages) - checks
        assert len(data) - np.ceil(indices / 8) <= 16
        assert report.size == len(data)
        assert report.bits_per_pixel == 8 * len(data) / 65536


@pytest.fixture
def wrap(monkeypatch):
    """(codec, name, function): the prior's method answers what `function` makes of its arguments and its answer."""

    def replace(codec, name, function):
        method = getattr(codec.networks.prior, name)
        monkeypatch.setattr(codec.networks.prior, name, lambda *inputs: function(inputs, method(*inputs)))

    return replace


def test_one_pass_of_the_prior_a_stage(make_codec, wrap):
    codec, calls = make_codec(), []
    wrap(codec, "context", lambda inputs, output: calls.append(int(inputs[1].sum())) or output)
    data = codec.compress(picture(64, 64))
    assert calls == [16, 32, 64, 128]
    codec.decompress(data)
    assert calls == [16, 32, 64, 128] * 2


def test_missing_stages_are_the_priors_most_probable_guess(make_codec):
    codec, image = make_codec(), picture(64, 64)
    data = codec.compress(image)
    truth = indices_of(codec, image, 2)
    for stages in range(1, 6):
        decoded = codec.decode(data, stages=stages)
        assert (decoded.stages, decoded.total_stages, decoded.damage) == (stages, 5, None)
        known = Scheme().partition(16, 16) < stages
        likely = codec.prior(truth, known[None]).argmax(dim=-1)
        expected = torch.where(known[None, :, :, None], truth, likely)
        assert (np.array(decoded.image) == shown(codec, expected, image)).all()


def test_a_cut_file_gives_its_first_stages(make_codec):
    codec, image = make_codec(), picture(48, 48)
    data = codec.compress(image)
    report = codec.inspect(data)
    ends = len(Header.unpack(data)[0].pack()) + np.cumsum([stage.bits for stage in report.stages]) / 8
    for kept in range(0, len(data), 2):
        whole = int((ends <= kept).sum())
        if whole == 0 and kept < ends[0]:
            with pytest.raises(CodecError):
                codec.decode(data[:kept])
            continue
        decoded = codec.decode(data[:kept])
        # The digits of a stage are complete up to two bytes after its code length at the latest, nearly always.
        assert int((ends <= kept - 2).sum()) <= decoded.stages <= whole
        assert f"Stage {decoded.stages + 1} of 5 cannot be read" in decoded.damage
        assert (np.array(decoded.image) == np.array(codec.decode(data, stages=decoded.stages).image)).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (50, 37)], ids=str)
def test_what_lies_behind_the_end_is_noted(make_codec, scheme, size):
    codec = make_codec()
    data = codec.compress(picture(*size), scheme=scheme)
    for more in (b"\0", b"\n", data):
        decoded = codec.decode(data + more)
        assert decoded.stages == decoded.total_stages
        behind = "1 byte" if len(more) == 1 else f"{len(more)} bytes"
        assert decoded.damage == (
            f"The compressed picture is whole, but the file goes on for {behind} behind its end; get it anew."
        )
        assert (np.array(decoded.image) == np.array(codec.decode(data).image)).all()
        assert codec.inspect(data + more).damage == decoded.damage
    with pytest.warns(DamageWarning, match="The compressed picture is whole"):
        codec.decompress(data + data)


def test_damage_in_a_stage_leaves_those_before(make_codec):
    codec, image = make_codec(), picture(64, 64)
    data = codec.compress(image)
    ends = 8 + np.cumsum([stage.bits for stage in codec.inspect(data).stages]) / 8
    for stage in range(1, 5):
        wrong = bytearray(data)
        wrong[int((ends[stage - 1] + ends[stage]) / 2)] ^= 0x55
        with pytest.warns(DamageWarning, match=f"Stage {stage + 1} of 5 cannot be read"):
            image = codec.decompress(bytes(wrong))
        assert (np.array(image) == np.array(codec.decode(data, stages=stage).image)).all()
    wrong = bytearray(data)
    wrong[int(ends[0]) - 2] ^= 0x55
    with pytest.raises(DamageError, match="Stage 1"):
        codec.decompress(bytes(wrong))


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1e-3, 1.0])
def test_a_prior_that_computes_otherwise_is_never_silently_wrong(make_codec, wrap, size):
    """As on a machine whose logits differ: the same indices, or the check speaks."""
    codec, other = make_codec(), make_codec()
    generator = torch.Generator().manual_seed(0)
    wrap(other, "logits", lambda inputs, output: output + size * torch.randn(output.shape, generator=generator))
    wrong = 0
    for seed in range(20):
        image = picture(64, 64, seed)
        data = codec.compress(image)
        decoded = other.decode(data)
        if decoded.damage is None:
            assert (np.array(decoded.image) == np.array(codec.decompress(data))).all()
        else:
            wrong += 1
            assert decoded.stages < 5
    assert wrong == 0 if size <= 1e-9 else wrong > 0 or size < 1e-5
    assert wrong == 20 if size >= 1e-3 else True


def test_other_weights_are_another_model(make_codec):
    codec = make_codec()
    data = codec.compress(picture(20, 20))
    for network in (codec.autoencoder, codec.prior):
        weights = next(network.parameters())
        kept = weights.detach().clone()
        with torch.no_grad():
            weights.view(-1)[0] += 1e-4
        other = Codec(codec.autoencoder, codec.prior, codec.marginals, "other")
        with torch.no_grad():
            weights.copy_(kept)
        with pytest.raises(ModelError, match="decompress it with the model that made it"):
            other.decompress(data)


def test_two_models_of_one_short_name_are_told_apart_by_the_check(make_codec):
    codec = make_codec()
    data = codec.compress(picture(20, 20))
    codec.fingerprint = codec.fingerprint[:2] + bytes(30)
    with pytest.raises(DamageError, match="Stage 1"):
        codec.decompress(data)


def test_a_model_has_one_fingerprint_in_every_precision(make_codec):
    codec = make_codec()
    halves = [network.half() for network in (codec.autoencoder, codec.prior)]
    first = Codec(*halves, codec.marginals, "half").fingerprint
    singles = [network.float() for network in halves]
    assert Codec(*singles, codec.marginals, "single").fingerprint == first


def test_the_prior_that_was_given_is_left_alone(make_codec):
    codec = make_codec()
    prior = codec.prior.float().train()
    again = Codec(codec.autoencoder, prior, codec.marginals, "again")
    assert again.prior is not prior
    assert prior.mask.dtype == torch.float32
    assert prior.training


def test_a_prior_that_leaves_float64_is_refused(make_codec, wrap):
    codec = make_codec()
    wrap(codec, "logits", lambda inputs, output: output.float())
    with pytest.raises(TypeError, match="float32"):
        codec.compress(picture(20, 20))


def test_what_the_encoder_knows_and_the_decoder_does_not_never_reaches_the_prior(make_codec, wrap):
    codec, seen = make_codec(), []
    wrap(codec, "context", lambda inputs, output: seen.append([value.clone() for value in inputs]) or output)
    codec.compress(picture(64, 64))
    assert len(seen) == 4
    assert all((indices[~known] == 0).all() and (indices[known] > 0).any() for indices, known in seen)


def forged(codec, width, height, body):
    return Header(codec.fingerprint[:2], width, height, 1).pack() + body


def test_claims_of_vast_pictures_are_refused_at_once(make_codec, wrap):
    codec = make_codec()
    wrap(codec, "context", lambda *_: pytest.fail("the prior was asked about a forged picture"))
    with pytest.raises(FormatError, match="beyond the limit of 67,108,864"):
        codec.decompress(forged(codec, 32768, 30518, b"x" * 100))
    with pytest.raises(DamageError, match="too few for the first stage"):
        codec.decompress(forged(codec, 8192, 8192, b"x" * 1000))


def test_few_bytes_take_few_passes_of_the_prior(make_codec, wrap):
    """Though the first check would come after 128 of 4096 positions."""
    codec, passes = make_codec(), []
    wrap(codec, "context", lambda _, output: passes.append(1) or output)
    header = Header(codec.fingerprint[:2], 256, 256, 2, Scheme("raster", 1)).pack()
    with pytest.raises(DamageError, match=r"Stage 1 of .* cannot be read \(the data end there\)"):
        codec.decompress(header + np.random.default_rng(0).bytes(20))
    assert len(passes) < 160 / 2  # bits, of which a position takes three or so


def test_a_header_of_a_quality_that_the_model_has_not_is_damage(make_codec):
    codec = make_codec()
    data = Header(codec.fingerprint[:2], 10, 10, 3).pack() + b"x" * 100
    with pytest.raises(DamageError, match="header"):
        codec.decompress(data)


def test_pictures_that_cannot_be_had(make_codec):
    codec = make_codec()
    with pytest.raises(CodecError, match="choose 1 to 2"):
        codec.compress(picture(8, 8), quality=3)
    codec.autoencoder.config.nested = False
    with pytest.raises(CodecError, match="has no quality 1; it has 2 alone"):
        codec.compress(picture(8, 8), quality=1)
    assert codec.inspect(codec.compress(picture(8, 8))).header.quality == 2
    with pytest.raises(CodecError, match="takes RGB"):
        codec.compress(Image.new("L", (8, 8)))
    with pytest.raises(FormatError, match="beyond the limit"):
        codec.compress(Image.new("RGB", (8193, MAX_PIXELS // 8192)))
    with pytest.raises(CodecError, match="at least 1"):
        codec.decode(codec.compress(picture(8, 8)), stages=0)
    with pytest.raises(CodecError, match=r"needs \(2, 16\)"):
        Codec(codec.autoencoder, codec.prior, codec.marginals[:1], "narrow")


def test_exit_codes_are_distinct():
    kinds = [VitrailError, CodecError, FormatError, ModelError, DamageError, DamageWarning]
    assert len({kind.exit_code for kind in kinds} | {0, 2}) == len(kinds) + 2


def test_numbers_and_buffers_of_other_kinds(make_codec):
    codec, image = make_codec(), picture(20, 20)
    data = codec.compress(image, 1)
    assert codec.compress(image, np.int64(1)) == codec.compress(image, 1.0) == data
    with pytest.raises(CodecError, match=r"no quality 1.5; choose 1 to 2"):
        codec.compress(image, 1.5)
    for buffer in (memoryview(data), bytearray(data)):
        assert (np.array(codec.decompress(buffer)) == np.array(codec.decompress(data))).all()
        assert codec.inspect(buffer) == codec.inspect(data)
