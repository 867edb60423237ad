"""The mathematics: pure functions of arrays and records."""
