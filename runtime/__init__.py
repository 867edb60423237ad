"""What a run is made of: records, journal, stores, lease, tasks. No ray, no mlx."""
