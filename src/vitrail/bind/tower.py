"""Any backbone as the encoder of images: what it sees, other senses learn to tell (Table 6.9)."""

from torch import Tensor, nn

from vitrail.backbones import BackboneConfig
from vitrail.errors import VitrailError

FRAMES = 2
"""Of a clip."""


class BackboneEncoder(nn.Module):
    """Pictures, and clips of two frames, to what a backbone says of whole images; there is no head to learn.

    Args:
        config: the backbone's.
        dimension: of the vectors, which must be the backbone's width.

    Raises:
        VitrailError: it is another.
    """

    def __init__(self, config: BackboneConfig, dimension: int) -> None:
        super().__init__()
        self.backbone = config.build()
        if self.backbone.width != dimension:
            raise VitrailError(
                f"The backbone of images gives vectors of {self.backbone.width} numbers and has no head, but the "
                f"model's dimension is {dimension}; set the dimension to {self.backbone.width}."
            )

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether `shape` is one of pictures, [B, 3, H, W], or of clips, [B, 3, 2, H, W]."""
        return min(shape[-2:]) > 0 and shape[1:-2] in ((3,), (3, FRAMES))

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, 3, H, W], or [B, 3, 2, H, W], of which the mean over the frames is taken -> [B, dimension].

        Raises:
            VitrailError: the inputs are of another shape.
        """
        if not self.accepts(tuple(inputs.shape)):
            raise VitrailError(
                f"Inputs of shape {list(inputs.shape)} do not fit the backbone, which takes [B, 3, H, W] or "
                f"[B, 3, {FRAMES}, H, W]; prepare them with the modality's `read`."
            )
        if inputs.ndim == 4:
            return self.backbone.forward_features(inputs).class_token
        frames = inputs.transpose(1, 2).flatten(0, 1)
        return self.backbone.forward_features(frames).class_token.unflatten(0, (-1, FRAMES)).mean(dim=1)
