"""Any two checkpoints of ours of a domain, side by side."""
