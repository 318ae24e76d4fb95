"""Vitrail: XCiT, SplitMask, PQ-MIM and ImageBind on your own images, sounds and sensors."""
