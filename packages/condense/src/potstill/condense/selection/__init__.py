"""Choosing real images."""
