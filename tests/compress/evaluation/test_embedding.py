"""Features for FID and KID: resized, normalised and pooled as the network expects."""

import pytest
import torch
import torch.nn.functional as F

from vitrail.compress.evaluation.embedding import load_embedding
from vitrail.engine.checkpoint import open_task
from vitrail.errors import VitrailError

IMAGES = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def test_a_network_of_timm_from_a_local_file(tmp_path):
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False).eval()
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    name = f"timm:test_vit={tmp_path / 'vit.pth'}"
    embedding = load_embedding(name).train()
    size, mean, std = (model.default_cfg[key] for key in ("input_size", "mean", "std"))
    resized = F.interpolate(IMAGES, size[1:], mode="bilinear", antialias=True)
    normal = (resized - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(normal), pre_logits=True)
    assert embedding.name == name
    torch.testing.assert_close(embedding(IMAGES).clone(), expected, rtol=0, atol=1e-6)


def test_inception_takes_torchvisions_file_and_no_other(tmp_path):
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    model = inception_v3(weights=None, init_weights=False, transform_input=False).eval()
    torch.save(model.state_dict(), tmp_path / "inception.pth")
    embedding = load_embedding(f"timm:inception_v3.tv_in1k={tmp_path / 'inception.pth'}")
    pooled = []
    model.avgpool.register_forward_hook(lambda *given: pooled.append(given[2].flatten(1)))
    # Features of random weights vanish layer by layer: compared relative to their size.
    resized = F.interpolate(IMAGES[:1], (299, 299), mode="bilinear", antialias=True)
    with torch.no_grad():
        model((resized - embedding.mean) / embedding.deviation)
    found = embedding(IMAGES[:1])
    assert found.shape == (1, 2048) and pooled[0].abs().max() > 0
    torch.testing.assert_close(found.clone(), pooled[0], rtol=1e-3, atol=1e-4 * pooled[0].abs().max().item())
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(VitrailError, match=r"other.pth cannot be loaded"):
        load_embedding(f"timm:inception_v3.tv_in1k={tmp_path / 'other.pth'}")


def test_a_checkpoint_of_ours(run):
    embedding = load_embedding(str(run))
    experiment, task = open_task(run)
    transform = experiment.eval_transform
    resized = F.interpolate(IMAGES, (transform.size, transform.size), mode="bilinear", antialias=True)
    normal = (resized - torch.tensor(transform.mean).view(3, 1, 1)) / torch.tensor(transform.std).view(3, 1, 1)
    with torch.no_grad():
        expected = task.backbone.forward_features(normal).class_token
    torch.testing.assert_close(embedding(IMAGES).clone(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("timm:resnet18=nowhere.pth", "There is no file nowhere.pth with weights of resnet18"),
        ("timm:nonsense_net=README.md", "The features timm:nonsense_net=README.md cannot be loaded"),
        ("nowhere", "There is no checkpoint nowhere"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_sentence(name, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("text")
    with pytest.raises(VitrailError, match=sentence):
        load_embedding(name)
