"""The hot loops, each with a plain reference beside it."""

# Hugging Face publishes a package of this name, and transformers checks its version: this placeholder keeps
# that check from raising.
__version__ = "0"
