"""The small networks of the commands, and every criterion of the core as an arm."""
