"""Measures: how far samples are from a reference, and from their teacher."""
