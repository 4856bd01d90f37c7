"""Models: masked encoders, decoders, students, and where their weights come from."""
