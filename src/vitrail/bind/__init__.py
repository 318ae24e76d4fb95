"""Images, text, sound, depth, heat and motion in one space of embeddings: ImageBind (Chapter 6)."""

from vitrail.bind.model import ImageBind, ImageBindConfig

__all__ = ["ImageBind", "ImageBindConfig"]
