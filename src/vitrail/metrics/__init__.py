"""Metrics: accumulators that gather outputs batch by batch."""
