import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.errors import BackupfsError, DamageError, UnsupportedError
from backupfs.format import config, layout
from backupfs.format.config import Config

CONFIG = Config(
    repository_id=bytes(range(16)),
    created_ns=1_700_000_000_123_456_789,
    chunk_min_bytes=65536,
    chunk_avg_bytes=262144,
    chunk_max_bytes=1048576,
    cipher=config.CIPHER_AES_256_GCM,
    compression=config.COMPRESSION_ZSTD,
    compression_level=1,
)
MAC = bytes(range(100, 132))


@given(
    st.builds(
        Config,
        repository_id=st.binary(min_size=16, max_size=16),
        created_ns=st.integers(0, 2**64 - 1),
        chunk_min_bytes=st.integers(64, 1 << 20),
        chunk_avg_bytes=st.integers(1 << 20, 4 << 20),
        chunk_max_bytes=st.integers(4 << 20, 16 << 20),
        cipher=st.sampled_from([1, 2]),
        compression=st.sampled_from([0, 1]),
        compression_level=st.integers(0, 255),
    ),
    st.binary(min_size=32, max_size=32),
)
def test_what_is_encoded_is_decoded(made: Config, mac: bytes) -> None:
    data = config.encode(made, mac)
    assert len(data) == config.SIZE_BYTES
    assert config.decode(data) == (made, mac)


def test_the_mac_covers_every_field() -> None:
    others = [
        replace(CONFIG, repository_id=bytes(16)),
        replace(CONFIG, created_ns=1),
        replace(CONFIG, chunk_min_bytes=64),
        replace(CONFIG, chunk_avg_bytes=65536),
        replace(CONFIG, chunk_max_bytes=262144),
        replace(CONFIG, cipher=config.CIPHER_CHACHA20_POLY1305),
        replace(CONFIG, compression=config.COMPRESSION_NONE),
        replace(CONFIG, compression_level=3),
        replace(CONFIG, features=1),
    ]
    assert len({config.encode_body(c) for c in [CONFIG, *others]}) == 10
    assert config.encode(CONFIG, MAC).startswith(config.encode_body(CONFIG) + MAC)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(CONFIG, chunk_min_bytes=63),
        replace(CONFIG, chunk_min_bytes=(1 << 20) + 1, chunk_avg_bytes=2 << 20, chunk_max_bytes=4 << 20),
        replace(CONFIG, chunk_avg_bytes=65535),
        replace(CONFIG, chunk_avg_bytes=255, chunk_min_bytes=64),
        replace(CONFIG, chunk_avg_bytes=5 << 20, chunk_max_bytes=8 << 20),
        replace(CONFIG, chunk_max_bytes=262143),
        replace(CONFIG, chunk_max_bytes=(16 << 20) + 1),
        replace(CONFIG, chunk_min_bytes=64, chunk_avg_bytes=256, chunk_max_bytes=1023),
    ],
)
def test_values_out_of_range_are_refused(wrong: Config) -> None:
    with pytest.raises(DamageError):
        config.decode(config.encode(wrong, MAC))


@pytest.mark.parametrize(
    "later",
    [
        replace(CONFIG, features=4),
        replace(CONFIG, cipher=0),
        replace(CONFIG, cipher=3),
        replace(CONFIG, compression=2),
    ],
)
def test_what_a_later_version_may_know_is_not_called_damage(later: Config) -> None:
    with pytest.raises(UnsupportedError):
        config.decode(config.encode(later, MAC))


def test_bytes_that_mean_nothing_are_zero() -> None:
    data = bytearray(config.encode(CONFIG, MAC)[: -layout.CHECKSUM.size])
    data[-1] = 1
    with pytest.raises(DamageError):
        config.decode(layout.with_checksum(bytes(data), config.SIZE_BYTES))


@given(st.integers(0, config.SIZE_BYTES - 1), st.integers(1, 255))
def test_no_byte_changes_unnoticed(at: int, mask: int) -> None:
    data = bytearray(config.encode(CONFIG, MAC))
    data[at] ^= mask
    with pytest.raises(DamageError):
        config.decode(bytes(data))


@given(st.binary(min_size=config.SIZE_BYTES - 4, max_size=config.SIZE_BYTES - 4))
def test_whatever_the_checksum_covers_only_typed_errors_come_out(noise: bytes) -> None:
    data = config.MAGIC + b"\0\1" + noise[10:]
    with contextlib.suppress(BackupfsError):
        config.decode(layout.with_checksum(data, config.SIZE_BYTES))
