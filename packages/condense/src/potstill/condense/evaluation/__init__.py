"""Judging a condensed set."""
