"""Scenes: posed images in the layouts that people have, and an analytic one that needs no file."""
