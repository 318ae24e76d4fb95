"""Indices as bytes, the same on every machine: frequencies, range coder, header, text."""
