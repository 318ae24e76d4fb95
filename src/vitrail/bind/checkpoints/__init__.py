"""Models as files: ours, the published layouts, CLIP's; in little memory."""
