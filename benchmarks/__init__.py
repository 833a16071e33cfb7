"""Benchmarks of speed and memory against other implementations; see README.md in this folder."""
