"""Files to typed batches: images, data sets, augmentations."""
