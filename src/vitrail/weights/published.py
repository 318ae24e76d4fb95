"""Weights that others have published, by name: `model.tag`, as in timm."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.download import RemoteFile
from vitrail.errors import VitrailError

if TYPE_CHECKING:
    from vitrail.data.augmentation import EvalTransform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PublishedWeights:
    """One published file: where it is, what it fits, and what to feed it.

    A model fed with other sizes, crops or normalisation than it was trained for loses accuracy without a word, so the
    transform stays with the weights.
    """

    model: str
    """Name of the model that the weights fill."""
    tag: str
    """What tells these weights from others for the same model."""
    url: str
    """Where the file is."""
    licence: str
    """SPDX identifier of the licence that the weights were published under."""
    num_classes: int = 0
    """Outputs of the head in the file; 0: the file has no head."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's configuration that these weights need otherwise than the model's default."""
    sha256: str | None = None
    """SHA-256 of the file as far as it was published: all of it or its first hexadecimal digits."""
    size: int = 224
    """Pixels a side at evaluation."""
    crop_ratio: float = 1.0
    """The evaluation crop over the resized picture's short side."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Per channel, of pixels in 0 .. 1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Per channel, of pixels in 0 .. 1."""
    score: float | None = None
    """The published result, in percent."""
    metric: str = "ImageNet top-1"
    """What `score` measures."""

    @property
    def name(self) -> str:
        """`model.tag`."""
        return f"{self.model}.{self.tag}"

    @property
    def filename(self) -> str:
        """The file's name in the cache; the hub calls all its files model.safetensors."""
        name = self.url.rsplit("/", 1)[1]
        return f"{self.name}.safetensors" if name == "model.safetensors" else name

    @property
    def file(self) -> RemoteFile:
        """What to download."""
        return RemoteFile(self.name, self.url, self.filename, self.sha256)

    @property
    def transform(self) -> "EvalTransform":
        """How a picture becomes this model's input."""
        from vitrail.data.augmentation import EvalTransform

        return EvalTransform(
            size=self.size, crop_ratio=self.crop_ratio, interpolation="bicubic", mean=self.mean, std=self.std
        )


_META = "https://dl.fbaipublicfiles.com"
_HUB = "https://huggingface.co/timm"

# ImageNet top-1 at 224, at 224 after distillation, and at 384 after distillation: Table A.1.
_XCIT_TOP1 = {
    "nano_12_p16": (69.9, 72.2, 75.4),
    "nano_12_p8": (73.8, 76.3, 77.8),
    "tiny_12_p16": (77.1, 78.6, 80.9),
    "tiny_12_p8": (79.7, 81.2, 82.4),
    "tiny_24_p16": (79.4, 80.4, 82.6),
    "tiny_24_p8": (81.9, 82.6, 83.7),
    "small_12_p16": (82.0, 83.3, 84.7),
    "small_12_p8": (83.4, 84.2, 85.1),
    "small_24_p16": (82.6, 83.9, 85.1),
    "small_24_p8": (83.9, 84.9, 85.6),
    "medium_24_p16": (82.7, 84.3, 85.4),
    "medium_24_p8": (83.7, 85.1, 85.8),
    "large_24_p16": (82.9, 84.9, 85.8),
    "large_24_p8": (84.4, 85.4, 86.0),
}

# ImageNet top-1 of a linear layer on frozen features, without labels in pre-training: Table 3.7.
_XCIT_DINO = {"small_12_p16": 77.8, "small_12_p8": 79.2, "medium_24_p16": 78.8, "medium_24_p8": 80.3}

# Box AP of Mask R-CNN on COCO (Table 3.9); mIoU of Semantic FPN and of UperNet on ADE20k (Table 3.10).
_XCIT_DENSE = {
    "tiny_12_p16": (42.7, 38.1, 41.5),
    "tiny_12_p8": (44.5, 39.9, 43.5),
    "small_12_p16": (45.3, 43.9, 45.9),
    "small_12_p8": (47.0, 44.2, 46.6),
    "small_24_p16": (46.5, 44.6, 46.9),
    "small_24_p8": (48.1, 47.1, 48.1),
    "medium_24_p16": (46.7, 45.9, 47.6),
    "medium_24_p8": (48.5, 46.9, 48.4),
}


def _xcit() -> list[PublishedWeights]:
    classifiers = [
        PublishedWeights(
            f"xcit_{size}",
            tag,
            f"{_META}/xcit/xcit_{size}_{file}.pth",
            "Apache-2.0",
            num_classes=1000,
            size=384 if tag == "dist_384" else 224,
            score=score,
        )
        for size, scores in _XCIT_TOP1.items()
        for tag, file, score in zip(
            ("in1k", "dist_224", "dist_384"), ("224", "224_dist", "384_dist"), scores, strict=True
        )
    ]
    hub = [  # timm's copies of the same
        PublishedWeights(
            f"xcit_{size}",
            f"{tag}_384" if pixels == 384 else tag,
            f"{_HUB}/xcit_{size}_{pixels}.{tag}/resolve/main/model.safetensors",
            "Apache-2.0",
            num_classes=1000,
            size=pixels,
            score=score,
        )
        for size, scores in _XCIT_TOP1.items()
        for tag, pixels, score in zip(("fb_in1k", "fb_dist_in1k", "fb_dist_in1k"), (224, 224, 384), scores, strict=True)
    ]
    self_supervised = [
        PublishedWeights(
            f"xcit_{size}",
            "dino",
            f"{_META}/dino/dino_xcit_{size}_pretrain/dino_xcit_{size}_pretrain.pth",
            "Apache-2.0",
            crop_ratio=0.875,
            score=score,
            metric="ImageNet linear top-1",
        )
        for size, score in _XCIT_DINO.items()
    ]
    dense = [
        PublishedWeights(
            f"xcit_{size}",
            tag,
            f"{_META}/xcit/{file}_xcit_{size}.pth",
            "Apache-2.0",
            config={"class_depth": 0},
            score=score,
            metric=metric,
        )
        for size, scores in _XCIT_DENSE.items()
        for tag, file, metric, score in zip(
            ("coco_maskrcnn", "ade20k_semantic_fpn", "ade20k_upernet"),
            ("coco/maskrcnn", "ade/sem_fpn", "ade/upernet"),
            ("COCO box AP", "ADE20k mIoU", "ADE20k mIoU"),
            scores,
            strict=True,
        )
    ]
    return [*classifiers, *hub, *self_supervised, *dense]


# ImageNet top-1 as DeiT publishes it, and the first digits of the SHA-256 that its files carry in their names.
_DEIT = {
    "tiny_patch16_224": (72.2, "a1311bcf"),
    "small_patch16_224": (79.9, "cd65a155"),
    "base_patch16_224": (81.8, "b5f2ef4d"),
    "base_patch16_384": (82.9, "8de9b5d1"),
    "tiny_distilled_patch16_224": (74.5, "b40b3cf7"),
    "small_distilled_patch16_224": (81.2, "649709d9"),
    "base_distilled_patch16_224": (83.4, "df68dfff"),
    "base_distilled_patch16_384": (85.2, "d0272ac0"),
}

# Model name -> DINO's folder and file.
_VIT_DINO = {
    "vit_small_patch16_224": "dino_deitsmall16_pretrain",
    "vit_small_patch8_224": "dino_deitsmall8_pretrain",
    "vit_base_patch16_224": "dino_vitbase16_pretrain",
    "vit_base_patch8_224": "dino_vitbase8_pretrain",
}


def _vit() -> list[PublishedWeights]:
    deit = [
        PublishedWeights(
            f"deit_{size}",
            "in1k",
            f"{_META}/deit/deit_{size}-{digits}.pth",
            "Apache-2.0",
            num_classes=1000,
            sha256=digits,
            size=int(size[-3:]),
            crop_ratio=0.875,
            score=score,
        )
        for size, (score, digits) in _DEIT.items()
    ]
    dino = [
        PublishedWeights(model, "dino", f"{_META}/dino/{file}/{file}.pth", "Apache-2.0", crop_ratio=0.875)
        for model, file in _VIT_DINO.items()
    ]
    augmented = [
        PublishedWeights(
            model := f"vit_{size}_patch16_{pixels}",
            "augreg_in21k_ft_in1k",
            f"{_HUB}/{model}.augreg_in21k_ft_in1k/resolve/main/model.safetensors",
            "Apache-2.0",
            num_classes=1000,
            size=pixels,
            crop_ratio=crop_ratio,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        )
        for size in ("tiny", "small", "base", "large")
        for pixels, crop_ratio in ((224, 0.9), (384, 1.0))
    ]
    return [*deit, *dino, *augmented]


PUBLISHED: dict[str, PublishedWeights] = {weights.name: weights for weights in (*_xcit(), *_vit())}


def list_weights(pattern: str = "*") -> list[str]:
    """Names of published weights that match `pattern` (with * and ?), `model.tag` each."""
    return sorted(name for name in PUBLISHED if fnmatchcase(name, pattern))


def find_weights(name: str) -> PublishedWeights:
    """The published weights called `name`.

    Raises:
        VitrailError: nothing is published under this name, which may be a file's that isn't there.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    path = Path(name)
    if path.suffix in (".pth", ".pt", ".safetensors") or len(path.parts) > 1:
        from vitrail.tensors import missing_file

        raise missing_file(path)
    tags = [weights.tag for weights in PUBLISHED.values() if weights.model == name.partition(".")[0]]
    known = f"for this model there are {', '.join(tags)}" if tags else "`vitrail models --weights` lists what there is"
    raise VitrailError(f"No published weights are called {name!r}; {known}.")
