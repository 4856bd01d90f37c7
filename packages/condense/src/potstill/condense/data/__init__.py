"""Images in memory, and their augmentation."""
