"""Benchmarks of the repository; a package, so that opacus, which installs one of that name, loses."""
