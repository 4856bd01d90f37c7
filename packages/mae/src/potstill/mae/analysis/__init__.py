"""Analysis: probes, similarity of blocks, pictures of a run, time of a step."""
