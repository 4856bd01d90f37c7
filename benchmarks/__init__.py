"""Benchmarks of the repository; a package, so that one of that name in opacus loses."""
