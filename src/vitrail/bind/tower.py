"""Any backbone as the encoder of images: what it sees, other senses learn to tell (Table 6.9)."""

from torch import Tensor, nn

from vitrail.backbones import BackboneConfig
from vitrail.errors import VitrailError

FRAMES = 2
"""Of a clip."""


class BackboneEncoder(nn.Module):
    """Pictures, and clips of two frames, to vectors: what a backbone says of whole images, through a linear head.

    Args:
        config: the backbone's.
        dimension: of the vectors.
    """

    def __init__(self, config: BackboneConfig, dimension: int) -> None:
        super().__init__()
        self.backbone = config.build()
        self.head = nn.Linear(self.backbone.width, dimension, bias=False)
        nn.init.trunc_normal_(self.head.weight, std=self.backbone.width**-0.5)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether `shape` is one of pictures, [B, 3, H, W], or of clips, [B, 3, 2, H, W]."""
        return min(shape[-2:]) > 0 and shape[1:-2] in ((3,), (3, FRAMES))

    def features(self, inputs: Tensor) -> Tensor:
        """The backbone's class tokens, [B, 3, H, W] -> [B, d]; of clips [B, 3, 2, H, W] the means over the frames."""
        if inputs.ndim == 4:
            return self.backbone.forward_features(inputs).class_token
        frames = inputs.transpose(1, 2).flatten(0, 1)
        return self.backbone.forward_features(frames).class_token.unflatten(0, (-1, FRAMES)).mean(dim=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, 3, H, W], or [B, 3, 2, H, W] -> [B, dimension].

        Raises:
            VitrailError: the inputs are of another shape.
        """
        if not self.accepts(tuple(inputs.shape)):
            raise VitrailError(
                f"Inputs of shape {list(inputs.shape)} do not fit the backbone, which takes [B, 3, H, W] or "
                f"[B, 3, {FRAMES}, H, W]; prepare them with the modality's `read`."
            )
        return self.head(self.features(inputs))
