"""Trial runs: tiny, exact runs that are killed, paused and damaged to show that nothing of it matters."""
