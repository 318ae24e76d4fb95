"""Learning from images without labels: SplitMask, BEiT, DINO (Chapter 4)."""
