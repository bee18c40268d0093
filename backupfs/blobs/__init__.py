"""Blobs: which chunks are known, the packs they are appended to, and reading them back."""
