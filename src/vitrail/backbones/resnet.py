"""ResNet, torchvision's, behind the questions that every backbone answers: what transformers are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from vitrail.backbones.features import Backbone, Features, check_layers
from vitrail.config import check_choices

_STAGES = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class ResNetConfig:
    """A ResNet (He et al., 2016)."""

    depth: Literal[18, 50, 101] = 50
    """Layers with weights: those that Tables 3.1, 3.9 and 3.10 compare with."""

    def __post_init__(self) -> None:
        check_choices(self)

    def build(self, num_classes: int = 0) -> "ResNet":
        """The network with fresh weights; without classes its output is the mean of the last map."""
        return ResNet(self, num_classes)


class ResNet(Backbone):
    """Images [B, 3, H, W] of any height and width -> logits [B, num_classes], or their features [B, d] without classes.

    A patch is a place of the last map, (ceil(H / 32), ceil(W / 32)), and the class token the mean of that map. The
    layers that can be asked for are the four stages, 0 to 3, each with the grid and width of its own: `layer_grids`.
    `network` has the keys of torchvision's weights, except `fc`, which is `head` here.
    """

    def __init__(self, config: ResNetConfig, num_classes: int = 0) -> None:
        from torchvision.models import resnet  # here, since its import takes longer than all the other backbones'

        super().__init__()
        self.config = config
        self.network: resnet.ResNet = getattr(resnet, f"resnet{config.depth}")()
        self.width = self.network.fc.in_features
        self.patch_size = 32
        self.num_classes = num_classes
        self.network.fc = nn.Identity()
        self.head = nn.Linear(self.width, num_classes) if num_classes else nn.Identity()

    def forward_features(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        """[B, 3, H, W] -> the last map as patch tokens, their mean, the grid, and the asked-for stages (0-based)."""
        network = self.network
        picture = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        check_layers(layers, len(_STAGES))
        outputs = {}
        for number, stage in enumerate(_STAGES):
            picture = network.get_submodule(stage)(picture)
            if number in layers:
                outputs[number] = picture
        patches = picture.flatten(2).mT
        return Features(
            patches,
            patches.mean(dim=1),
            _grid(picture),
            tuple(outputs[number].flatten(2).mT for number in layers),
            tuple(_grid(outputs[number]) for number in layers),
        )

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, num_classes]."""
        return self.head(self.forward_features(images).class_token)

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, besides vectors: none."""
        return set()

    @property
    def layer_count(self) -> int:
        """Layers for layer-wise learning-rate decay: the first convolution, the stages, the head."""
        return len(_STAGES) + 2

    def layer_of(self, name: str) -> int:
        """The layer, 0 .. layer_count - 1, that the parameter `name` belongs to."""
        room, _, rest = name.partition(".")
        if room == "head":
            return self.layer_count - 1
        stage = rest.split(".")[0]
        return 1 + _STAGES.index(stage) if stage in _STAGES else 0


def _grid(picture: Tensor) -> tuple[int, int]:
    return picture.shape[2], picture.shape[3]


RESNETS: dict[str, ResNetConfig] = {
    "resnet18": ResNetConfig(18),
    "resnet50": ResNetConfig(50),
    "resnet101": ResNetConfig(101),
}
