"""Teachers: networks and closed forms that are read as one velocity on one path."""
