"""Prompts, and the verifiers that score what was answered."""
