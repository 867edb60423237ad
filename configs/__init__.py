"""The settings schema and the recipes."""

from configs.errors import SettingsError
from configs.load import load

__all__ = ["SettingsError", "load"]
