"""Records, journal, stores, lease and tasks of a run; nothing here imports Ray or MLX."""
