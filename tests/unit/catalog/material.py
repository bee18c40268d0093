"""Keys for tests of what is sealed."""

from backupfs.codec.keys import Keys, derive_keys
from backupfs.format.config import CIPHER_AES_256_GCM, COMPRESSION_ZSTD, Config


def make_keys(master: bytes = bytes(32), compression: int = COMPRESSION_ZSTD) -> Keys:
    """Always the same for the same master key."""
    config = Config(
        repository_id=b"repository id 16",
        created_ns=0,
        chunk_min_bytes=512,
        chunk_avg_bytes=2048,
        chunk_max_bytes=8192,
        cipher=CIPHER_AES_256_GCM,
        compression=compression,
        compression_level=1,
    )
    return derive_keys(master, config)
