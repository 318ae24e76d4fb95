"""Views of a picture: crops, flipped, recoloured, blurred (Section 4.5.6, and DINO's)."""

from dataclasses import dataclass

from torchvision.transforms import InterpolationMode, v2

from vitrail.config import check_order, check_range
from vitrail.data.augmentation import IMAGENET_MEAN, IMAGENET_STD, Transform, to_normalized


@dataclass(frozen=True)
class View:
    """One random view; by default the crop and flip that SplitMask and BEiT take for all but the smallest data."""

    size: int = 224
    """Height and width of the result, in pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest share of the picture's area in the crop; at most 0.25 for dense scenes (Section 4.5.2.2)."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.0
    """Probability of changed colours: brightness and contrast by 0.4, saturation by 0.2, hue by 0.1."""
    greyscale: float = 0.0
    """Probability of a grey picture."""
    blur: float = 0.0
    """Probability of a Gaussian blur of a deviation of 0.1 to 2 pixels at 224 pixels, in proportion at other sizes."""
    solarize: float = 0.0
    """Probability that values of 128 and above are inverted."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from red, green and blue in 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides red, green and blue after the mean is subtracted."""

    def __post_init__(self) -> None:
        check_range(self, "size", least=1)
        check_range(self, "scale", above=0, most=1)
        check_range(self, "flip", "jitter", "greyscale", "blur", "solarize", least=0, most=1)
        check_range(self, "std", above=0)
        check_order(self, "scale")

    def build(self) -> Transform:
        """A picture (RGB) -> [3, size, size], float32, normalised."""
        steps: list = [
            v2.RandomResizedCrop(self.size, self.scale, interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(self.flip),
        ]
        if self.jitter:
            steps.append(v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], self.jitter))
        if self.greyscale:
            steps.append(v2.RandomGrayscale(self.greyscale))
        if self.blur:
            widest = 2.0 * self.size / 224
            kernel = 2 * max(1, round(2 * widest)) + 1
            steps.append(v2.RandomApply([v2.GaussianBlur(kernel, (widest / 20, widest))], self.blur))
        if self.solarize:
            steps.append(v2.RandomSolarize(128, self.solarize))
        return v2.Compose([*steps, *to_normalized(self.mean, self.std)])


STRONG = View(jitter=0.8, greyscale=0.2, blur=0.5, solarize=0.2)
"""For the smallest data sets (Section 4.5.6, which names the changes; the probabilities are those of BYOL's views)."""
