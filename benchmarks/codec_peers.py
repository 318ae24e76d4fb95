"""Two published codecs in plain torch with random weights, for their speed alone; a codec with its parts timed.

Ballé, Minnen, Singh, Hwang, Johnston: Variational image compression with a scale hyperprior, 2018; Minnen, Ballé,
Toderici: Joint autoregressive and hierarchical priors for learned image compression, 2018, whose latents are coded one
position after the other, each given those before it. Written from the papers; latents are coded with constriction.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import constriction
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

LARGEST = 63  # latents are clipped there
STRIDE = 64  # of the hyperprior's latents: pictures are padded to multiples of it


class Stopwatch:
    """Seconds by name; what is measured within another measurement counts there alone."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun, inside = time.perf_counter(), sum(self.seconds.values())
        yield
        self.seconds[name] += time.perf_counter() - begun - (sum(self.seconds.values()) - inside)


class GDN(nn.Module):
    """Generalized divisive normalization, x / sqrt(beta + gamma x^2), or its approximate inverse."""

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(0.1 * torch.eye(channels))

    def forward(self, x: Tensor) -> Tensor:
        norm = F.conv2d(x.square(), self.gamma[:, :, None, None], self.beta)
        return x * (norm.sqrt() if self.inverse else norm.rsqrt())


def down(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 5, stride=2, padding=2)


def up(channels: int, out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out, 5, stride=2, padding=2, output_padding=1)


class Hyperprior(nn.Module):
    """Ballé et al. (2018): latents y, Gaussians whose scales come from hyper-latents z."""

    outputs = 1  # of the hyperprior for each latent: scales

    def __init__(self, width: int = 128, latent: int = 192) -> None:
        super().__init__()
        n, m = width, latent
        self.latent = m
        self.watch = Stopwatch()
        self.analysis = nn.Sequential(down(3, n), GDN(n), down(n, n), GDN(n), down(n, n), GDN(n), down(n, m))
        layers = [up(m, n), GDN(n, True), up(n, n), GDN(n, True), up(n, n), GDN(n, True), up(n, 3)]
        self.synthesis = nn.Sequential(*layers)
        self.hyper_analysis = nn.Sequential(nn.Conv2d(m, n, 3, padding=1), nn.ReLU(), down(n, n), nn.ReLU(), down(n, n))
        self.hyper_synthesis = self.hyper(n, m)
        with torch.no_grad():  # latents of a random network are next to 0, and would cost the coder nothing
            for transform in (self.analysis, self.hyper_analysis):
                transform[-1].weight *= 20

    def hyper(self, n: int, m: int) -> nn.Sequential:
        return nn.Sequential(up(n, n), nn.ReLU(), up(n, n), nn.ReLU(), nn.Conv2d(n, m, 3, padding=1))

    @torch.inference_mode()
    def compress(self, image: Image.Image) -> tuple[tuple[int, int], bytes]:
        """The picture's size and its streams."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        pixels = F.pad(pixels, (0, -image.width % STRIDE, 0, -image.height % STRIDE), mode="replicate")
        coder = constriction.stream.queue.RangeEncoder()
        with self.watch("network"):
            latents = self.analysis(pixels).round().clamp(-LARGEST, LARGEST)[0]
        with self.watch("prior"):
            hyper = self.hyper_analysis(latents[None].abs()).round().clamp(-LARGEST, LARGEST)[0]
        self.code(coder, hyper, torch.zeros_like(hyper), torch.full_like(hyper, 3.0))
        with self.watch("prior"):
            parameters = self.hyper_synthesis(hyper[None])[0]
        self.code_latents(coder, latents, parameters)
        return image.size, coder.get_compressed().tobytes()

    @torch.inference_mode()
    def decompress(self, size: tuple[int, int], data: bytes) -> Image.Image:
        """The picture."""
        coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, dtype=np.uint32))
        rows, columns = (-(-side // STRIDE) for side in reversed(size))
        hyper = torch.zeros(self.hyper_analysis[0].out_channels, rows, columns)
        self.code(coder, hyper, torch.zeros_like(hyper), torch.full_like(hyper, 3.0))
        with self.watch("prior"):
            parameters = self.hyper_synthesis(hyper[None])[0]
        latents = torch.zeros(self.latent, 4 * rows, 4 * columns)
        self.code_latents(coder, latents, parameters)
        with self.watch("network"):
            picture = self.synthesis(latents[None])[0].clamp_(0, 1)
        pixels = picture.mul_(255).round_().byte().permute(1, 2, 0)[: size[1], : size[0]]
        return Image.fromarray(pixels.numpy().copy())

    def code(self, coder: object, values: Tensor, means: Tensor, scales: Tensor) -> None:
        """Encodes integers, or decodes them into `values`; all tensors are of one shape."""
        with self.watch("coder"):
            gaussian = constriction.stream.model.QuantizedGaussian(-LARGEST, LARGEST)
            tables = [tensor.reshape(-1).double().numpy() for tensor in (means, scales)]
            if isinstance(coder, constriction.stream.queue.RangeEncoder):
                coder.encode(values.reshape(-1).numpy().astype(np.int32), gaussian, *tables)
            else:
                decoded = coder.decode(gaussian, *tables)  # type: ignore[attr-defined]
                values.copy_(torch.from_numpy(decoded).view(values.shape))

    def code_latents(self, coder: object, latents: Tensor, parameters: Tensor) -> None:
        """Encodes latents [m, h, w], or decodes into them."""
        self.code(coder, latents, torch.zeros_like(latents), 1 + F.softplus(parameters))


class Autoregressive(Hyperprior):
    """Minnen et al. (2018): means and scales from the hyper-latents and from the latents above and to the left."""

    def __init__(self, width: int = 128, latent: int = 192) -> None:
        super().__init__(width, latent)
        m = latent
        self.context = nn.Conv2d(m, 2 * m, 5)
        with torch.no_grad():
            self.context.weight[:, :, 2, 2:] = 0
            self.context.weight[:, :, 3:] = 0
        widths = [4 * m, 10 * m // 3, 8 * m // 3, 2 * m]
        self.parameters_of = nn.Sequential(
            nn.Linear(widths[0], widths[1]), nn.LeakyReLU(), nn.Linear(widths[1], widths[2]), nn.LeakyReLU(),
            nn.Linear(widths[2], widths[3]),
        )  # fmt: skip

    def hyper(self, n: int, m: int) -> nn.Sequential:
        layers = [
            up(n, m),
            nn.LeakyReLU(),
            up(m, 3 * m // 2),
            nn.LeakyReLU(),
            nn.Conv2d(3 * m // 2, 2 * m, 3, padding=1),
        ]
        return nn.Sequential(*layers)

    def code_latents(self, coder: object, latents: Tensor, parameters: Tensor) -> None:
        """Position after position, encoding as decoding: computed all at once, the context would differ by rounding."""
        padded = F.pad(torch.zeros_like(latents), (2, 2, 2, 2))
        weight = self.context.weight[:, :, :3].flatten(1)  # the rows below are 0
        for row in range(latents.shape[1]):
            for column in range(latents.shape[2]):
                with self.watch("prior"):
                    before = padded[:, row : row + 3, column : column + 5].reshape(-1)
                    context = F.linear(before, weight, self.context.bias)
                    both = torch.cat([parameters[:, row, column], context])
                    scales, means = self.parameters_of(both).chunk(2)
                self.code(coder, latents[:, row, column], means, 1 + F.softplus(scales))
                padded[:, row + 2, column + 2] = latents[:, row, column]
