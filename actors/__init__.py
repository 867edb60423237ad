"""Who holds state: the actors of a run, their conductor and their topology."""
