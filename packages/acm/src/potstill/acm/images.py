"""Images from folders and zip files, held in memory as bytes: those of the core."""

from potstill.core.images import CIFAR10, IMAGENET, Images, load_images

__all__ = ["CIFAR10", "IMAGENET", "Images", "load_images"]
