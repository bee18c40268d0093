"""backupfs: a directory that is its own backup."""

__version__ = "0.1.0"
