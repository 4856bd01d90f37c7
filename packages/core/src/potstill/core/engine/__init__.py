"""The engine: `fit`, the only training loop of potstill, and what it is made of."""
