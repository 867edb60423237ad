"""Fault runs: tiny, exact runs that are killed, paused and damaged to show that they end undamaged."""
