"""A decoder of the mae package as the painter of `quantize_pixels`; condense does not know mae."""

from collections.abc import Callable

from torch import Tensor

from potstill.mae import MaskedAutoencoder, MaskPlan


def painter(model: MaskedAutoencoder) -> Callable[[Tensor, Tensor], Tensor]:
    """``inpaint(images, mask)`` for images of the model's size, and patches of its size.

    Args:
        model: A masked autoencoder with a decoder, trained on images that are normalised alike.
    """

    def inpaint(images: Tensor, mask: Tensor) -> Tensor:
        order = mask.flatten(1).long().argsort(dim=1, stable=True)  # visible patches come first
        hidden = int(mask[0].sum())  # of each image
        visible = order.shape[1] - hidden
        return model.eval().reconstruct(images, MaskPlan(order[:, :visible], order[:, visible:]))

    return inpaint
