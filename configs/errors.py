"""The one exception of this package, which imports nothing of ours: `ops` makes it a BadInput."""


class SettingsError(ValueError):
    """A recipe or an override cannot be used: one sentence with file, key, needed and came."""
