"""The official ImageBind's structure, written anew from its description: for its speed, and to compare with.

The encoder of one sense, around PyTorch's own multi-head attention, whose tensors have the official names; and how
files become its inputs: whole files are decoded, every clip goes through torchaudio's filterbank. The official code
reads no depth, heat or motion; there the peer is what its users write.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import soundfile
import torch
import torch.nn.functional as F
import torchaudio
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from vitrail.bind.checkpoints.official import to_official
from vitrail.bind.modality import Modality
from vitrail.bind.model import ImageBind
from vitrail.data.audio import clip_starts

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Attention(nn.MultiheadAttention):
    """Among tokens [N, B, d]."""

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[override]
        return super().forward(tokens, tokens, tokens, need_weights=False, attn_mask=mask)[0]


class Block(nn.Module):
    def __init__(self, width: int, heads: int, extra: bool) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, add_bias_kv=extra)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        tokens = tokens + self.attn(self.norm_1(tokens), mask)
        return tokens + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm_2(tokens))))


class Table(nn.Module):
    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, count, width))


class Stem(nn.Module):
    """Tokens [B, N, d] of prepared inputs."""

    def __init__(self, modality: Any) -> None:
        super().__init__()
        self.name, width = modality.name, modality.width
        if self.name == "text":
            self.token_embedding = nn.Embedding(49408, width)
            self.pos_embed = nn.Parameter(torch.empty(1, modality.length, width))
            return
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        projection: nn.Module
        if self.name == "image":
            kernel = (2, modality.patch_size, modality.patch_size)
            projection = nn.Sequential(nn.Identity(), nn.Conv3d(3, width, kernel, kernel, bias=False))
            self.rgbt_stem = nn.ModuleDict({"proj": projection})
            self.pos_embedding_helper = Table(1 + (modality.size // modality.patch_size) ** 2, width)
        elif self.name == "imu":
            self.imu_stem = nn.ModuleDict({"proj": nn.Linear(48, width, bias=False), "norm_layer": nn.LayerNorm(width)})
            self.pos_embed = nn.Parameter(torch.empty(1, 251, width))
        else:
            projection = nn.Conv2d(1, width, 16, 10 if self.name == "audio" else 16, bias=False)
            parts = nn.ModuleDict({"proj": projection, "norm_layer": nn.LayerNorm(width)})
            setattr(self, "depth_stem" if self.name == "depth" else "rgbt_stem", parts)
            self.pos_embedding_helper = Table(1 + (228 if self.name == "audio" else (modality.size // 16) ** 2), width)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.name == "text":
            return self.token_embedding(inputs) + self.pos_embed
        if self.name == "imu":
            stretches = inputs.unfold(2, 8, 8).permute(0, 2, 1, 3).flatten(2)
            tokens = self.imu_stem["norm_layer"](self.imu_stem["proj"](stretches))
            positions = self.pos_embed
        else:
            stem = self.depth_stem if self.name == "depth" else self.rgbt_stem
            if self.name == "image" and inputs.ndim == 4:
                inputs = inputs[:, :, None].repeat(1, 1, 2, 1, 1)
            tokens = stem["proj"](inputs).flatten(2).mT
            tokens = stem["norm_layer"](tokens) if "norm_layer" in stem else tokens
            positions = self.pos_embedding_helper.pos_embed
        return torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + positions


class Trunk(nn.Module):
    def __init__(self, modality: Modality) -> None:
        super().__init__()
        width, name = modality.width, modality.name
        if name == "image":
            self.pre_transformer_layer = nn.Sequential(nn.LayerNorm(width, eps=1e-6))
        extra = name not in ("image", "text")
        self.blocks = nn.ModuleList(Block(width, modality.heads, extra) for _ in range(modality.depth))
        self.causal = name == "text"

    def forward(self, tokens: Tensor) -> Tensor:
        if hasattr(self, "pre_transformer_layer"):
            tokens = self.pre_transformer_layer(tokens)
        mask = torch.full((tokens.shape[1], tokens.shape[1]), -torch.inf).triu(1) if self.causal else None
        tokens = tokens.permute(1, 0, 2)
        for block in self.blocks:
            tokens = block(tokens, mask)
        return tokens.permute(1, 0, 2)


class Peer(nn.Module):
    """The encoder of one sense with the weights of ours: [B, S, ...] -> unit vectors [B, d], means over S."""

    def __init__(self, model: ImageBind, name: str) -> None:
        super().__init__()
        modality = replace(model.modality(name), drop_path=0.0)
        head = nn.Linear(modality.width, model.config.dimension, bias=False)
        with torch.device("meta"):
            self.stem, self.trunk = Stem(modality), Trunk(modality)
        between = [nn.Dropout(0.5)] if name == "imu" else []
        norm = nn.LayerNorm(modality.width, eps=1e-6)
        if name == "text":
            self.head: nn.Module = nn.ModuleDict({"proj": nn.Sequential(norm, head)})
        else:
            self.head = nn.Sequential(norm, nn.Identity(), *between, head)
        theirs = "vision" if name == "image" else name
        state = {}
        for key, tensor in to_official(model).items():
            part, sense, rest = key.split(".", 2)
            if sense == theirs and part != "modality_postprocessors":
                state[f"{ {'preprocessors': 'stem', 'trunks': 'trunk', 'heads': 'head'}[part[9:]] }.{rest}"] = tensor
        self.load_state_dict(state, assign=True)
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        batch, clips = inputs.shape[:2]
        flat = inputs.flatten(0, 1)
        tokens = self.trunk(self.stem(flat))
        if isinstance(self.head, nn.ModuleDict):
            vectors = self.head["proj"](tokens[torch.arange(len(tokens)), flat.argmax(dim=1)])
        else:
            vectors = self.head(tokens[:, 0])
        vectors = F.normalize(vectors, dim=-1).unflatten(0, (batch, clips)).mean(dim=1)
        return F.normalize(vectors, dim=-1)


class Reader(NamedTuple):
    """How a file becomes inputs [S, ...], in two steps."""

    read: Callable[[Any], Any]
    prepare: Callable[[Any], Tensor]


@cache
def picture_transform() -> Callable[[Image.Image], Tensor]:
    steps = [v2.Resize(224, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)]
    return v2.Compose([*steps, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def read_picture(path: Path) -> Image.Image:
    with path.open("rb") as file:
        return Image.open(file).convert("RGB")


def read_video(path: Path) -> tuple[Tensor, Tensor]:
    """All frames [T, H, W, 3], and their times."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
    return torch.from_numpy(np.stack([frame for _, frame in frames])), torch.tensor([time for time, _ in frames])


def prepare_video(video: tuple[Tensor, Tensor]) -> Tensor:
    """Five clips of 2 s, the first and the last frame of each, three crops."""
    frames, times = video
    step = float(times[-1] - times[0]) / max(len(times) - 1, 1)
    views = []
    for start in clip_starts(float(times[-1]) + step, 2.0, 5):
        inside = frames[(times >= start) & (times < start + 2)]
        clip = inside[[0, -1]].permute(3, 0, 1, 2).float() / 255
        height, width = clip.shape[2:]
        shape = (224 * height // width, 224) if height > width else (224, 224 * width // height)
        clip = F.interpolate(clip, shape, mode="bilinear", align_corners=False)
        clip = (clip - torch.tensor(MEAN)[:, None, None, None]) / torch.tensor(STD)[:, None, None, None]
        free = max(shape) - 224
        for place in (0, -(-free // 2), free):
            views.append(clip.narrow(2 if height > width else 3, place, 224))
    return torch.stack(views)


def read_sound(path: Path) -> tuple[Tensor, int]:
    """All channels [C, n], and the rate."""
    values, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    return torch.from_numpy(values.T.copy()), rate


def prepare_sound(sound: tuple[Tensor, int]) -> Tensor:
    """Three clips of 2 s, each a spectrogram by torchaudio."""
    waveform, rate = sound
    waveform = torchaudio.functional.resample(waveform, rate, 16_000)
    clips = []
    for start in clip_starts(waveform.shape[1] / 16_000, 2.0, 3):
        clip = waveform[:, int(start * 16_000) : int((start + 2) * 16_000)]
        spectrogram = torchaudio.compliance.kaldi.fbank(
            clip - clip.mean(),
            htk_compat=True,
            sample_frequency=16_000,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=128,
            dither=0.0,
            frame_length=25,
            frame_shift=10,
        ).T
        clips.append((F.pad(spectrogram, (0, 204 - spectrogram.shape[1]))[None] + 4.268) / 9.138)
    return torch.stack(clips)


@cache
def tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


def prepare_text(text: str) -> Tensor:
    ids = [49406, *tokenizer().encode(text), 49407]
    tokens = torch.zeros(77, dtype=torch.int64)
    tokens[: len(ids)] = torch.tensor(ids)
    return tokens[None]


@cache
def grey_transform() -> Callable[[Tensor], Tensor]:
    return v2.Compose([v2.Resize(224, antialias=True), v2.CenterCrop(224)])


def prepare_depth(millimetres: np.ndarray) -> Tensor:
    """Disparity of a Kinect; holes stay holes."""
    metres = torch.from_numpy(millimetres.astype(np.float32) / 1000)[None].clamp(0.01, 50)
    disparity = (0.075 * 518.86 / metres).clamp(max=600)
    return ((grey_transform()(disparity) - 8 * 75 * 0.0418) / (8 * 75 * 0.0295))[None]


def read_grey(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def prepare_heat(values: np.ndarray) -> Tensor:
    values = values if values.ndim == 2 else np.array(Image.fromarray(values).convert("L"))
    return grey_transform()(torch.from_numpy(values.astype(np.float32) / 255)[None])[None]


def read_motion(path: Path) -> tuple[np.ndarray, float]:
    with np.load(path) as arrays:
        return arrays["values"], float(arrays["rate"])


def prepare_motion(motion: tuple[np.ndarray, float]) -> Tensor:
    """The first 5 s at 400 Hz, in m/s^2 and rad/s."""
    values, rate = motion
    units = np.array([9.80665] * 3 + [np.pi / 180] * 3)
    signal = torch.from_numpy((values * units).T.astype(np.float32))[None]
    signal = F.interpolate(signal, round(signal.shape[2] * 400 / rate), mode="linear")[..., :2000]
    return F.pad(signal, (0, 2000 - signal.shape[2]), mode="replicate")


READERS = {
    "image": Reader(read_picture, lambda picture: picture_transform()(picture)[None]),
    "video": Reader(read_video, prepare_video),
    "text": Reader(lambda text: text, prepare_text),
    "audio": Reader(read_sound, prepare_sound),
    "depth": Reader(read_grey, prepare_depth),
    "thermal": Reader(read_grey, prepare_heat),
    "imu": Reader(read_motion, prepare_motion),
}
"""By kind of file."""
