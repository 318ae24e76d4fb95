from collections.abc import Sequence

import pytest
import torch
from torch import nn

from vitrail.data.loader import LoaderConfig
from vitrail.data.samples import UnlabelledImage
from vitrail.errors import FileError, VitrailError
from vitrail.pretrain.tokenizers import TokenizerConfig

HERE = LoaderConfig(workers=0)


@pytest.fixture
def images() -> Sequence[UnlabelledImage]:
    generator = torch.Generator().manual_seed(9)
    return [UnlabelledImage(torch.randn(3, 32, 48, generator=generator)) for _ in range(12)]


def by_hand(image: torch.Tensor, side: int) -> torch.Tensor:
    """[3, H, W] -> [h, w, 3 * side * side], patch by patch, float64."""
    rows, columns = image.shape[1] // side, image.shape[2] // side
    cut = [
        [image[:, y * side : (y + 1) * side, x * side : (x + 1) * side].flatten() for x in range(columns)]
        for y in range(rows)
    ]
    return torch.stack([torch.stack(row) for row in cut]).double()


@pytest.mark.parametrize("side", [8, 16])
def test_a_word_is_that_of_the_largest_cosine(images, side):
    """Equation 4.1, in float64, cosine by cosine."""
    tokenizer = TokenizerConfig(words=50, patch_size=side).build(patch_size=side)
    image = images[0].image
    patches, vocabulary = by_hand(image, side), tokenizer.vocabulary.double()
    cosines = torch.stack([patches @ word / patches.norm(dim=2) / word.norm() for word in vocabulary], dim=2)
    found = tokenizer(image[None])[0]
    assert found.shape == (32 // side, 48 // side) and found.dtype == torch.int64
    assert torch.equal(found, cosines.argmax(dim=2))
    assert torch.equal(tokenizer(5 * image[None])[0], found)  # the length of a patch makes no difference


def test_many_patches_are_compared_in_parts(images, monkeypatch):
    tokenizer = TokenizerConfig(words=50).build(patch_size=8)
    batch = torch.stack([sample.image for sample in images])
    whole = tokenizer(batch)
    monkeypatch.setattr("vitrail.pretrain.tokenizers._AT_ONCE", 7)
    assert torch.equal(tokenizer(batch), whole)


@pytest.mark.parametrize("open_at_most", [0, 32])
def test_words_sought_in_bfloat16_are_those_of_float32(images, monkeypatch, open_at_most):
    """Where several words are about as near, float32 decides; alone, bfloat16 would take others."""
    monkeypatch.setattr("vitrail.pretrain.tokenizers._OPEN_AT_MOST", open_at_most)  # 0: never fewer
    tokenizer = TokenizerConfig(words=2000).build(patch_size=8)
    batch = torch.stack([sample.image for sample in images])
    batch[0, :, :8, :8] = 0  # as near to all
    batch[1, 0, 0, 0] = torch.nan  # of no word, and of no number beyond the last
    expected = tokenizer(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = tokenizer(batch)
    expected[1, 0, 0] = found[1, 0, 0]
    assert torch.equal(found, expected)
    assert found.dtype == torch.int64 and 0 <= int(found.min()) <= int(found.max()) < 2000
    vectors = tokenizer.patches(batch).flatten(0, 2)
    alone = (vectors.bfloat16() @ tokenizer.vocabulary.bfloat16().mT).argmax(dim=1)
    assert not torch.equal(alone, expected.flatten())


@pytest.mark.gpu
def test_words_on_a_gpu_are_those_on_a_cpu(images):
    tokenizer = TokenizerConfig(words=2000).build(patch_size=8)
    batch = torch.stack([sample.image for sample in images])
    expected = tokenizer(batch)
    tokenizer.cuda()
    for half in (False, True):
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            assert torch.equal(tokenizer(batch.cuda()).cpu(), expected)


def test_the_words_of_some_patches_are_those_among_all(images):
    tokenizer = TokenizerConfig(words=50).build(patch_size=8)
    batch = torch.stack([sample.image for sample in images])
    only = torch.stack([torch.randperm(16)[:5] for _ in batch])
    assert torch.equal(tokenizer(batch, only), tokenizer(batch).flatten(1).gather(1, only))


def test_a_word_finds_itself(images):
    tokenizer = TokenizerConfig(words=64).build(patch_size=8)
    numbers = torch.arange(64).view(1, 8, 8)
    picture = tokenizer.words(numbers)  # [1, 8, 8, 3, 8, 8]
    assert picture.shape == (1, 8, 8, 3, 8, 8)
    torch.testing.assert_close(picture.flatten(3).norm(dim=3), torch.ones(1, 8, 8))
    image = picture.permute(0, 3, 1, 4, 2, 5).reshape(1, 3, 64, 64)
    assert torch.equal(tokenizer(image), numbers)


@pytest.mark.parametrize(("words_of", "patches_of"), [(8, 16), (16, 16), (16, 8), (8, 8), (8, 32)])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 50), (7, 65)])
def test_each_patch_of_the_network_has_one_word(words_of, patches_of, height, width):
    tokenizer = TokenizerConfig(words=20, patch_size=words_of).build(patch_size=patches_of)
    grid = (-(-height // patches_of), -(-width // patches_of))
    assert tokenizer(torch.randn(2, 3, height, width)).shape == (2, *grid)
    # What changes in one patch of the network changes that patch's word's pixels alone.
    image = torch.randn(1, 3, height, width)
    changed = image.clone()
    changed[..., :patches_of, :patches_of] += 1
    apart = (tokenizer.patches(image) != tokenizer.patches(changed)).any(dim=3)[0]
    assert apart[0, 0]
    if words_of <= patches_of:  # enlarged pictures blend at the edges
        assert int(apart.sum()) == 1


def test_random_directions_follow_the_seed_alone():
    torch.manual_seed(1)
    one = TokenizerConfig(words=30, seed=4).build(16)
    torch.manual_seed(2)
    two, other = TokenizerConfig(words=30, seed=4).build(16), TokenizerConfig(words=30, seed=5).build(16)
    assert torch.equal(one.vocabulary, two.vocabulary) and not torch.equal(one.vocabulary, other.vocabulary)
    torch.testing.assert_close(one.vocabulary.norm(dim=1), torch.ones(30))
    generator = torch.Generator().manual_seed(4)
    components = torch.rand(30, 192, generator=generator).double() * 2 - 1  # uniform in -1..1, then of length 1
    torch.testing.assert_close(one.vocabulary.double(), components / components.norm(dim=1, keepdim=True))


def fitted(images, **fields) -> torch.Tensor:
    tokenizer = TokenizerConfig(**fields).build(16)
    tokenizer.fit(images, HERE)
    return tokenizer.vocabulary


def test_random_patches_are_patches_of_different_images(images):
    vocabulary = fitted(images, kind="random_patches", words=10)
    tokenizer = TokenizerConfig(words=2).build(16)
    owners = []
    for word in vocabulary:
        cosines = [float((tokenizer.patches(sample.image[None]).flatten(0, 2) @ word).max()) for sample in images]
        lengths = [float(tokenizer.patches(sample.image[None]).norm(dim=3).max()) for sample in images]
        owners.append(max(range(len(images)), key=lambda n: cosines[n] / lengths[n]))
        image = images[owners[-1]].image[None]
        patches = nn.functional.normalize(tokenizer.patches(image).flatten(0, 2), dim=1)
        assert float((patches @ word).max()) == pytest.approx(1, abs=1e-6)
    assert len(set(owners)) == 10
    assert torch.equal(vocabulary, fitted(images, kind="random_patches", words=10))
    assert not torch.equal(vocabulary, fitted(images, kind="random_patches", words=10, seed=1))


def test_k_means_comes_to_rest():
    """Patches around five directions: each word is the mean direction of the patches it is nearest to."""
    generator = torch.Generator().manual_seed(0)
    directions = nn.functional.normalize(torch.randn(5, 192, generator=generator), dim=1)
    cells = torch.randint(5, (30, 4, 4), generator=generator)
    vectors = directions[cells] * (1 + torch.rand(30, 4, 4, 1, generator=generator))
    vectors += 0.002 * torch.randn(vectors.shape, generator=generator)
    pictures = vectors.view(30, 4, 4, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(30, 3, 32, 32)
    data = [UnlabelledImage(picture) for picture in pictures]
    tokenizer = TokenizerConfig(kind="k_means", words=5, seed=3).build(8)
    tokenizer.fit(data, HERE)
    unit = nn.functional.normalize(vectors.flatten(0, 2).double(), dim=1)
    owners = tokenizer(pictures).flatten()
    means = torch.stack([unit[owners == word].mean(dim=0) for word in range(5)])
    torch.testing.assert_close(tokenizer.vocabulary.double(), nn.functional.normalize(means, dim=1), rtol=0, atol=1e-5)
    again = TokenizerConfig(kind="k_means", words=5, seed=3).build(8)
    again.fit(data, HERE)
    assert torch.equal(tokenizer.vocabulary, again.vocabulary)


def test_only_so_many_patches_and_images_are_read(images):
    read = []

    class Counted(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    tokenizer = TokenizerConfig(kind="k_means", words=4, samples=64).build(16)
    assert len(tokenizer._sample(Counted(images), 64, 16, HERE)) == 4 * 6  # 6 patches an image, 4 images of 16 wanted
    assert len(set(read)) == 4


def test_too_few_patches_are_named(images):
    for kind in ("random_patches", "k_means"):
        with pytest.raises(VitrailError, match=r"too few for 100 words; lower tokenizer.words"):
            fitted(images, kind=kind, words=100)


class Thirds(nn.Module):
    """Words 0 to 2 by brightness; a batch of any size."""

    def __init__(self, scale: int = 1) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 8)[:, 0]
        return self.scale * ((means > -0.1).long() + (means > 0.1).long())


@pytest.fixture
def program(tmp_path):
    def write(module: nn.Module) -> str:
        batch = {0: torch.export.Dim("batch")}
        torch.export.save(torch.export.export(module, (torch.randn(2, 3, 16, 24),), dynamic_shapes=(batch,)), path)
        return path

    path = tmp_path / "words.pt2"
    return write


def test_a_program_says_the_words(images, program):
    path = program(Thirds())
    tokenizer = TokenizerConfig(kind="program", words=3, program=path).build(16)
    batch = torch.stack([sample.image for sample in images[:3]])
    half = nn.functional.interpolate(batch, (16, 24), mode="area")
    assert torch.equal(tokenizer(batch), Thirds()(half))
    only = torch.tensor([[1], [0], [1]])
    assert torch.equal(tokenizer(batch, only), Thirds()(half).flatten(1).gather(1, only))
    assert tokenizer.state_dict().keys() == {"vocabulary"} and tokenizer.vocabulary.numel() == 0
    with pytest.raises(VitrailError, match="have no pictures"):
        tokenizer.words(torch.zeros(1, dtype=torch.int64))


def test_a_program_that_does_not_fit_is_named(images, program, tmp_path):
    path = program(Thirds(scale=50))
    with pytest.raises(FileError, match="has more than 3 words"):
        TokenizerConfig(kind="program", words=3, program=path).build(16)(torch.randn(3, 3, 32, 48))
    path = program(nn.AvgPool2d(8))
    with pytest.raises(FileError, match=r"gives torch.float32 \[2, 3, 2, 3\], not words \[2, 2, 3\]"):
        TokenizerConfig(kind="program", words=3, program=path).build(16)(torch.randn(2, 3, 32, 48))
    (tmp_path / "broken.pt2").write_bytes(b"PK nothing")
    with pytest.raises(FileError, match=r"is no readable torch.export file"):
        TokenizerConfig(kind="program", program=tmp_path / "broken.pt2").build(16)(torch.randn(1, 3, 32, 48))
    with pytest.raises(VitrailError, match=r"needs tokenizer.program"):
        TokenizerConfig(kind="program")
