"""What networks are made of: attention, blocks, patches, positions. Pure tensors, plain arguments."""
