"""Encodings: exact definitions of hash grid, spherical harmonics and frequencies."""
