"""Rendering: occupancy, marching, compositing; of any callable, never owning a field."""
