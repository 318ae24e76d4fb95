"""DALL-E's encoder (Ramesh et al., 2021), from which BEiT takes its words: one of 8192 for each 8 x 8 pixels."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import FileError
from vitrail.tensors import read_tensors

_GROUPS = 4


class DallEEncoder(nn.Module):
    """Pictures [B, 3, H, W] in 0..1 -> the logits of their words, [B, V, H / 8, W / 8].

    Four groups of residual blocks, between which the sides are halved and the channels double.

    Args:
        width: channels of the first group.
        depth: blocks of a group.
        words: V.
    """

    factor = 2 ** (_GROUPS - 1)
    """Pixels a side that a word stands for."""

    def __init__(self, width: int = 256, depth: int = 2, words: int = 8192) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 7, padding=3)
        self.groups = nn.ModuleList()
        channels = width
        for number in range(_GROUPS):
            outputs = width * 2**number
            inputs = [channels, *[outputs] * (depth - 1)]
            self.groups.append(nn.Sequential(*(_Block(each, outputs, 1 / (_GROUPS * depth) ** 2) for each in inputs)))
            channels = outputs
        self.head = nn.Conv2d(channels, words, 1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, V, H / 8, W / 8]."""
        tokens = self.stem(0.8 * images + 0.1)  # values keep away from 0 and 1, where its decoder's likelihood ends
        for number, group in enumerate(self.groups):
            tokens = group(tokens if number == 0 else F.max_pool2d(tokens, 2))
        return self.head(F.relu(tokens))

    @classmethod
    def from_file(cls, path: str | Path) -> "DallEEncoder":
        """The encoder of the published file, `encoder.pkl`; its tensors are read, and nothing in it is run.

        Raises:
            FileError: no such file, or not that of DALL-E's encoder.
        """
        tensors, _ = read_tensors(path)
        try:
            width, words = len(tensors["blocks.input.w"]), len(tensors["blocks.output.conv.w"])
            depth = sum(name.startswith("blocks.group_1.") and name.endswith(".conv_1.w") for name in tensors)
            encoder = cls(width, depth, words)
            encoder.load_state_dict({_renamed(name): tensor for name, tensor in tensors.items()})
        except (KeyError, ValueError, RuntimeError):  # a name is missing, left over or strange; a shape is another
            raise FileError(f"{path} is not the file of DALL-E's encoder; take its encoder.pkl.") from None
        return encoder


class _Block(nn.Module):
    """[B, d, H, W] -> [B, e, H, W]: four convolutions through a quarter of the channels, beside a short way."""

    def __init__(self, inputs: int, outputs: int, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.short = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        widths, sides = [inputs, *[outputs // 4] * 3, outputs], (3, 3, 3, 1)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, side, padding=side // 2)
            for before, after, side in zip(widths[:-1], widths[1:], sides, strict=True)
        )

    def forward(self, images: Tensor) -> Tensor:
        long = images
        for convolution in self.convolutions:
            long = convolution(F.relu(long))
        return self.short(images) + self.gain * long


def _renamed(name: str) -> str:
    """`blocks.group_2.block_1.res_path.conv_3.w` -> `groups.1.0.convolutions.2.weight`."""
    parts = name.removeprefix("blocks.").split(".")
    kind = {"w": "weight", "b": "bias"}[parts.pop()]
    if parts in (["input"], ["output", "conv"]):
        return f"{'stem' if parts == ['input'] else 'head'}.{kind}"
    group, block, path, *convolution = parts
    numbers = [int(part.rpartition("_")[2]) - 1 for part in (group, block, *convolution)]
    inner = "short" if path == "id_path" else f"convolutions.{numbers[2]}"
    return f"groups.{numbers[0]}.{numbers[1]}.{inner}.{kind}"
