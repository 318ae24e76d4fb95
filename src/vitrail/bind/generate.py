"""From any sense to a picture (Section 6.4.4): a vector of ours in place of the CLIP embedding that unCLIP paints from.

The published ImageBind keeps OpenCLIP's image encoder as it is, so that pipelines made for its embeddings, such as
Stable unCLIP 2.1, take vectors of all senses.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vitrail.bind.search.parts import Vectors
from vitrail.errors import FileError, VitrailError

if TYPE_CHECKING:
    from PIL.Image import Image

PIPELINE = "StableUnCLIPImg2ImgPipeline"
"""The kind of pipeline, as its folder names it."""


class Generator:
    """A pipeline of diffusers, read from a folder; nothing is fetched from anywhere.

    Args:
        folder: of the pipeline, with `model_index.json`.
        device: where it computes.

    Attributes:
        dimension: d of the vectors that it paints from.

    Raises:
        FileError: there is no such pipeline, or it is damaged.
        VitrailError: the packages of the extra are missing.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        self.folder = Path(folder)
        try:
            kind = json.loads((self.folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
        except FileNotFoundError:
            raise FileError(f"There is no pipeline in {folder}; name the folder of a {PIPELINE}.") from None
        except (OSError, ValueError, KeyError, TypeError):
            raise FileError(f"{self.folder / 'model_index.json'} is damaged; get the pipeline anew.") from None
        if kind != PIPELINE:
            raise FileError(f"The pipeline in {folder} is a {kind}; name the folder of a {PIPELINE}.")
        try:
            import diffusers
            import transformers
        except ImportError:
            raise VitrailError(
                "Pictures are generated with diffusers and transformers, of which one is missing; "
                "pip install 'vitrail[generate]'."
            ) from None
        for package in (diffusers, transformers):
            package.utils.logging.disable_progress_bar()  # of reading files
        try:
            pipeline = diffusers.StableUnCLIPImg2ImgPipeline
            self.pipeline: Any = pipeline.from_pretrained(self.folder, local_files_only=True)
        except Exception as error:  # of nearly every built-in type, and of several packages
            reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise FileError(f"The pipeline in {folder} cannot be read ({reason}); get it anew.") from None
        self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=None)  # None: shown on terminals
        normalizer = self.pipeline.image_normalizer
        self.dimension: int = normalizer.mean.shape[1]
        self._length = float((normalizer.mean.square() + normalizer.std.square()).sum().sqrt().detach())

    def generate(self, vector: Vectors, seed: int = 0, steps: int = 20, guidance: float = 10.0) -> "Image":
        """A picture of what a vector stands for.

        CLIP's embeddings are longer than ours, and their length is not known to the vector. It is given the length
        that they have on average: the pipeline's own mean and deviation tell it.

        Args:
            vector: [d], of unit length.
            seed: of the noise at the beginning.
            steps: of diffusion.
            guidance: how much to trust the vector; 1: no guidance, which takes half of the time.

        Raises:
            VitrailError: the pipeline was made for vectors of another dimension.
        """
        if vector.shape != (self.dimension,):
            raise VitrailError(
                f"The pipeline in {self.folder} paints from vectors of {self.dimension} dimensions, and the model's "
                f"have {vector.shape[-1]}; take a model or a pipeline that fits the other."
            )
        embedding = torch.from_numpy(vector)[None] * self._length
        made = self.pipeline(
            prompt="",
            image_embeds=embedding.to(self.pipeline.device, self.pipeline.dtype),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed),  # on the CPU: the same noise for every device
        )
        image: Image = made.images[0]
        return image
