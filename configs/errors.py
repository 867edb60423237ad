"""The one exception of this package, which imports nothing else of Pippin; `ops` makes it a BadInput."""


class SettingsError(ValueError):
    """An unusable recipe or override: one sentence with the file, the key, what was needed and what came."""
