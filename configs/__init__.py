"""What is asked for: the settings schema and the recipes."""
