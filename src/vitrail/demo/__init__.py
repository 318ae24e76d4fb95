"""The main job on bundled photos, from training to a report that opens in a browser."""
