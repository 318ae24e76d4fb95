import pytest
import timm

from vitrail.backbones import MODELS
from vitrail.backbones.vit import VITS
from vitrail.data.augmentation import EvalTransform
from vitrail.errors import VitrailError
from vitrail.weights.published import PUBLISHED, find_weights, list_weights


def test_every_entry_fits_a_model():
    assert len(PUBLISHED) == 14 * 6 + 4 + 8 * 3 + 8 + 4 + 8
    for name, weights in PUBLISHED.items():
        assert name == f"{weights.model}.{weights.tag}"
        assert weights.model in MODELS
        assert all(hasattr(MODELS[weights.model], field) for field in weights.config)
        if weights.model in VITS:
            assert weights.size == VITS[weights.model].image_size
    assert len({weights.filename for weights in PUBLISHED.values()}) == len(PUBLISHED)


@pytest.mark.parametrize(
    ("family", "tag", "peer_tag", "count"),
    [
        ("xcit", "in1k", "fb_in1k", 14),
        ("xcit", "dist_224", "fb_dist_in1k", 14),
        ("xcit", "dist_384", "fb_dist_in1k", 14),
        ("xcit", "fb_in1k", "fb_in1k", 14),
        ("xcit", "fb_dist_in1k", "fb_dist_in1k", 14),
        ("xcit", "fb_dist_in1k_384", "fb_dist_in1k", 14),
        ("deit", "in1k", "fb_in1k", 8),
        ("vit", "dino", "dino", 4),
        ("vit", "augreg_in21k_ft_in1k", "augreg_in21k_ft_in1k", 8),
    ],
)
def test_urls_and_transforms_are_those_timm_knows(family, tag, peer_tag, count):
    found = [find_weights(name) for name in list_weights(f"{family}_*.{tag}")]
    assert len(found) == count
    for weights in found:
        size = f"_{weights.size}" if family == "xcit" else ""
        peer = timm.models.get_pretrained_cfg(f"{weights.model}{size}.{peer_tag}")
        assert weights.url in (peer.url, f"https://huggingface.co/{peer.hf_hub_id}/resolve/main/model.safetensors")
        assert peer.input_size == (3, weights.size, weights.size)
        assert (peer.mean, peer.std, peer.interpolation) == (weights.mean, weights.std, "bicubic")
        assert (peer.num_classes, peer.license) == (weights.num_classes, weights.licence.lower())


def test_entries_in_full():
    distilled = find_weights("xcit_small_12_p8.dist_384")
    assert distilled.url == "https://dl.fbaipublicfiles.com/xcit/xcit_small_12_p8_384_dist.pth"
    assert (distilled.score, distilled.metric, distilled.licence) == (85.1, "ImageNet top-1", "Apache-2.0")
    assert distilled.transform == EvalTransform(size=384, crop_ratio=1.0)
    segmenter = find_weights("xcit_medium_24_p16.ade20k_semantic_fpn")
    assert segmenter.url == "https://dl.fbaipublicfiles.com/xcit/ade/sem_fpn_xcit_medium_24_p16.pth"
    assert (segmenter.score, segmenter.metric, segmenter.config) == (45.9, "ADE20k mIoU", {"class_depth": 0})
    dino = find_weights("xcit_small_12_p16.dino")
    assert dino.url == (
        "https://dl.fbaipublicfiles.com/dino/dino_xcit_small_12_p16_pretrain/dino_xcit_small_12_p16_pretrain.pth"
    )
    assert (dino.num_classes, dino.score, dino.transform.crop_ratio) == (0, 77.8, 0.875)
    assert find_weights("deit_tiny_patch16_224.in1k").sha256 == "a1311bcf"
    augmented = find_weights("vit_tiny_patch16_384.augreg_in21k_ft_in1k")
    assert augmented.filename == "vit_tiny_patch16_384.augreg_in21k_ft_in1k.safetensors"
    assert augmented.transform == EvalTransform(384, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_names():
    tags = ("dist_224", "dist_384", "fb_dist_in1k", "fb_dist_in1k_384", "fb_in1k", "in1k")
    assert list_weights("xcit_nano_12_p8.*") == [f"xcit_nano_12_p8.{tag}" for tag in tags]
    with pytest.raises(
        VitrailError, match=r"called 'xcit_nano_12_p8.x'; for this model there are in1k, dist_224, dist_384, fb_in1k"
    ):
        find_weights("xcit_nano_12_p8.x")
    with pytest.raises(VitrailError, match="`vitrail models --weights` lists what there is"):
        find_weights("nothing")
