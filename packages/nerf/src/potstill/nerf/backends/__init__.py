"""Backends: implementations of the same functions, chosen by name or by `auto`."""
