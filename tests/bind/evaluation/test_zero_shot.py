"""Classification by names: against float64 term by term, on texts whose vectors a made-up model gives."""

import pytest
import torch
from torch.nn.functional import normalize

from vitrail.bind.evaluation.zero_shot import ZeroShotClassifier, blend
from vitrail.bind.modalities.imu import Inertial
from vitrail.bind.modalities.text import Text
from vitrail.bind.modalities.thermal import Thermal
from vitrail.bind.model import ImageBindConfig
from vitrail.bind.prompts import IMAGENET_TEMPLATES, LLVIP, NYU_D
from vitrail.errors import VitrailError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = ImageBindConfig(6, {"text": Text(width=8, depth=1, heads=2)}).build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def test_prompts():
    assert len(set(IMAGENET_TEMPLATES)) == 80
    assert all(template.count("{}") == 1 for template in IMAGENET_TEMPLATES)
    assert "itap of my {}." in IMAGENET_TEMPLATES
    assert len(NYU_D) == 10
    assert len(NYU_D["other"]) == 18
    assert list(LLVIP) == ["person", "background"]


def test_templates_are_those_of_open_clip():
    metadata = pytest.importorskip("open_clip.zero_shot_metadata")
    assert tuple(fill("{}") for fill in metadata.OPENAI_IMAGENET_TEMPLATES) == IMAGENET_TEMPLATES


def test_names_are_averaged_over_templates_and_the_nearest_counts(model):
    classes = {"pet": ("cat", "dog"), "{car}": ("red car",)}
    templates = ("a photo of a {}.", "the sound of {}, {}")
    classifier = ZeroShotClassifier.from_names(model, classes, templates, batch_size=3)
    assert classifier.classes == ("pet", "{car}")

    def vector(name):
        texts = [f"a photo of a {name}.", f"the sound of {name}, {name}"]
        return normalize(model.embed({"text": texts})["text"].double().mean(dim=0), dim=0)

    queries = normalize(torch.randn(7, 6), dim=1)
    pet = torch.stack([queries.double() @ vector("cat"), queries.double() @ vector("dog")]).amax(dim=0)
    expected = torch.stack([pet, queries.double() @ vector("red car")], dim=1)
    found = classifier.similarities(queries)
    torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-5)
    assert classifier.classify(queries).tolist() == expected.argmax(dim=1).tolist()
    assert 0 < classifier.classify(torch.randn(99, 6)).double().mean() < 1  # both classes are found


def test_vectors_of_any_sense_classify_and_names_alone_do():
    classifier = ZeroShotClassifier(["up", "right"], torch.tensor([[0.0, 3.0], [2.0, 0.0]]))
    assert classifier.classify(torch.tensor([[0.6, 0.8], [0.8, 0.6], [1.0, 1.0]])).tolist() == [0, 1, 0]
    torch.testing.assert_close(classifier.similarities(torch.tensor([[0.6, 0.8]])), torch.tensor([[0.8, 0.6]]))


def test_probabilities(model):
    classifier = ZeroShotClassifier(["up", "right"], torch.eye(2), scale=5.0)
    expected = torch.tensor([[0.6, 0.8]], dtype=torch.float64).mul(5).softmax(1).float()
    torch.testing.assert_close(classifier.probabilities(torch.tensor([[0.6, 0.8]])), expected)
    named = ZeroShotClassifier.from_names(model, ["cat"], ["{}"])
    assert named.scale == pytest.approx(min(100.0, float(model.scales["text"].log_scale.detach().exp())))


@pytest.mark.parametrize("sense", ["thermal", "imu"])
def test_examples_of_any_sense_are_a_classifier(sense):
    """Vectors of other senses stand where those of names do: as prompts, and as the weights of a linear layer."""
    torch.manual_seed(0)
    modality = {"thermal": Thermal(width=8, depth=1, heads=2, size=32), "imu": Inertial(width=8, depth=1, heads=2)}[
        sense
    ]
    shape = {"thermal": (6, 1, 32, 32), "imu": (6, 6, 2000)}[sense]
    model = ImageBindConfig(6, {sense: modality}).build().eval()
    with torch.inference_mode():
        vectors = model.encode({sense: torch.randn(shape)})[sense]
    classifier = ZeroShotClassifier(["a", "b"], vectors[:4], torch.tensor([1, 0, 0, 1]))
    assert classifier.classify(vectors[:4]).tolist() == [1, 0, 0, 1]
    alone = ZeroShotClassifier(["a", "b", "c"], vectors[:3])
    linear = torch.nn.Linear(6, 3, bias=False)
    linear.load_state_dict({"weight": alone.vectors})
    torch.testing.assert_close(linear(vectors[3:].clone()), alone.similarities(vectors[3:]))


def test_plain_names(model):
    classifier = ZeroShotClassifier.from_names(model, ["cat", "dog"], ["{}"])
    torch.testing.assert_close(classifier.vectors, model.embed({"text": ["cat", "dog"]})["text"])


def test_blend():
    sound, video = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    torch.testing.assert_close(blend([sound, video]), torch.tensor([[0.5**0.5, 0.5**0.5]]))
    torch.testing.assert_close(blend([sound, video], [0.6, 0.8]), torch.tensor([[0.6, 0.8]]))
    with pytest.raises(VitrailError, match="1 weights cannot be combined"):
        blend([sound, video], [1.0])
    with pytest.raises(VitrailError, match=r"shapes \[\[1, 2\], \[2, 2\]\]"):
        blend([sound, video.repeat(2, 1)])


def test_errors(model):
    with pytest.raises(VitrailError, match="needs classes"):
        ZeroShotClassifier.from_names(model, [])
    with pytest.raises(VitrailError, match="at least one name"):
        ZeroShotClassifier.from_names(model, {"cat": ()})
    with pytest.raises(VitrailError, match=r"\['a photo'\] are no templates"):
        ZeroShotClassifier.from_names(model, ["cat"], ["a photo"])
    with pytest.raises(VitrailError, match=r"2 classes do not fit vectors of shape \[3, 2\]"):
        ZeroShotClassifier(["a", "b"], torch.ones(3, 2))
    with pytest.raises(VitrailError, match="at least one vector"):
        ZeroShotClassifier(["a", "b"], torch.ones(2, 2), torch.tensor([0, 0]))
    with pytest.raises(VitrailError, match="not of the classes' 2 dimensions"):
        ZeroShotClassifier(["a"], torch.ones(1, 2)).classify(torch.ones(1, 3))
