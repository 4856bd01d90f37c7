"""Triggers, poisoned sets, and what a model does under them."""
