"""Images, text, sound, depth, heat and motion in one space of embeddings: ImageBind (Chapter 6)."""
