"""Benchmarks: a table and JSON, side by side with the peer in one run."""
