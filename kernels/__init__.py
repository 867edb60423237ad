"""The hot loops, each with a plain reference beside it."""

# Hugging Face publishes a package of this name and transformers probes its version: an answer that
# is no version keeps the probe from raising.
__version__ = "0"
