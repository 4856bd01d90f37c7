"""One tensor out of whatever a model returns, where models of others are adapted."""

from potstill.core.vocabulary.output import TensorOutput, tensor_of

__all__ = ["TensorOutput", "tensor_of"]
