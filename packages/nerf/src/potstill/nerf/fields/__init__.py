"""Fields: position and direction to density and colour, in two blocks."""
