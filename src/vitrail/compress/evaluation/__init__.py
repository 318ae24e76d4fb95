"""Codecs on sets of pictures: ours, the classical ones, those behind CompressAI's methods (Section 5.4)."""
