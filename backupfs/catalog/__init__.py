"""The catalog: versioned records of the whole tree's present and past, in memory (overlay) above LMDB (index)."""
