"""Benchmark of both ways a classifier fails."""
