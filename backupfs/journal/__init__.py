"""The journal: an authenticated, append-only log of what changed in the catalog. With the packs it is the truth."""
