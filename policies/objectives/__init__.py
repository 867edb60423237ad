"""Losses: pure functions from arrays to a scalar."""
