"""Reports: rows with provenance as table, CSV, plot and one self-contained page."""
