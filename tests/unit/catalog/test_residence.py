"""What of the index's file is in this process: bounded, whatever is read."""

import ctypes
import mmap
import os
from pathlib import Path

from backupfs import limits
from backupfs.catalog.index import Index
from backupfs.catalog.residence import LOOKS_BETWEEN, Residence
from backupfs.format.catalog import Table, number_key
from tests.conftest import LogRule
from tests.crash.simulation import SeededRandomness
from tests.unit.catalog.material import make_keys

FAULT_BYTES = 64 * limits.KIB
"""The kernel brings so much at once."""
FILE_BYTES = limits.INDEX_RESIDENT_BYTES * 5 // 4
VALUE = bytes(range(256)) * 15


def mapped_bytes() -> int:
    """Of files, in this process."""
    return int(Path("/proc/self/statm").read_bytes().split()[2]) * mmap.PAGESIZE


def test_what_is_resident_of_a_file_goes_when_it_is_too_much(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (FILE_BYTES // 256))
    with path.open("rb") as file, mmap.mmap(file.fileno(), FILE_BYTES, prot=mmap.PROT_READ) as memory:
        residence = Residence(path, FILE_BYTES)
        before = mapped_bytes()
        half = FILE_BYTES // 2
        assert sum(memory[: half : mmap.PAGESIZE]) == 0
        residence.bound()
        assert mapped_bytes() - before >= half, "it is not too much yet"
        assert sum(memory[half :: mmap.PAGESIZE]) == 0
        assert mapped_bytes() - before >= FILE_BYTES
        residence.bound()
        assert mapped_bytes() - before < limits.MIB
        assert memory[1::FAULT_BYTES] == b"\1" * (FILE_BYTES // FAULT_BYTES), "it is read again where it is needed"
        residence.close()


def test_of_a_file_that_is_not_found_in_memory_nothing_goes(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect("is not found among what is mapped")
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(bytes(FILE_BYTES))
    other.write_bytes(bytes(FILE_BYTES))
    residence = Residence(other, FILE_BYTES)
    before = mapped_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), FILE_BYTES, prot=mmap.PROT_READ) as memory:
        assert sum(memory[:: mmap.PAGESIZE]) == 0
        residence.bound()
        assert mapped_bytes() - before >= FILE_BYTES - limits.MIB
    residence.close()


def test_what_is_locked_in_memory_stays_there(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect("cannot be given back")
    path = tmp_path / "file"
    path.write_bytes(bytes(FILE_BYTES))
    with path.open("rb") as file, mmap.mmap(file.fileno(), FILE_BYTES, prot=mmap.PROT_READ) as memory:
        residence = Residence(path, FILE_BYTES)
        before = mapped_bytes()
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mlock(ctypes.c_void_p(residence._start), ctypes.c_size_t(mmap.PAGESIZE)) == 0, "the first page, which everybody may"
        assert sum(memory[:: mmap.PAGESIZE]) == 0
        residence.bound()
        residence.bound()
        assert mapped_bytes() - before >= FILE_BYTES - limits.MIB
        assert sum(memory[:: mmap.PAGESIZE]) == 0
        residence.close()


def test_an_index_larger_than_the_bound_stays_within_it_however_it_is_read(tmp_path: Path) -> None:
    index = Index(tmp_path, make_keys(), SeededRandomness(0))
    keys = [number_key(n) for n in range(15_000)]
    bound = mapped_bytes() + limits.INDEX_RESIDENT_BYTES + LOOKS_BETWEEN * FAULT_BYTES + limits.MIB
    index.apply([((1, 4096, 1), [(Table.META, key, VALUE) for key in keys])])
    assert os.stat(tmp_path / "data.mdb").st_size > limits.INDEX_RESIDENT_BYTES + LOOKS_BETWEEN * FAULT_BYTES + 8 * limits.MIB
    index.renew()
    most = 0
    for number, (key, sealed) in enumerate(index.scan(Table.META, b"")):
        assert (key, index.open_record(Table.META, key, sealed)) == (keys[number], VALUE)
        if number % LOOKS_BETWEEN == 0:
            most = max(most, mapped_bytes())
    for look in (lambda key: index.get(Table.META, key), lambda key: index.seek(Table.META, key)):
        for number, key in enumerate(keys):
            assert look(key) is not None
            if number % LOOKS_BETWEEN == 0:
                most = max(most, mapped_bytes())
    index.apply([((1, 8192, 2), [(Table.META, key, b"") for key in keys])])
    assert max(most, mapped_bytes()) <= bound
    index.close()
