"""The index: an LMDB environment that holds every record of the journal up to a position. It may be deleted at any time.

* Values are sealed under a key drawn at each opening, by a counter that lives in memory: no nonce can come back, whatever LMDB forgot.
* LMDB trusts its file: so its size is held against its own meta pages before it is opened, and a file that fails is set aside.
* Writes happen on one thread, one transaction a batch, with the position in it; the loop reads through one transaction that it renews.
"""

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import lmdb

from backupfs import limits
from backupfs.catalog.residence import LOOKS_BETWEEN, Residence
from backupfs.codec.keys import Keys, Sealer
from backupfs.errors import DamageError, StoreError, StoreFullError
from backupfs.format.catalog import VERSIONED, Table, change_key, split_version
from backupfs.format.journal import Change
from backupfs.format.layout import Sealed
from backupfs.randomness import Randomness

DISTRUSTED: Final = "distrusted"
_LIB_VERSION: Final = 0  # LMDB 0.9: the line that has been in the field for ten years
_LOCAL: Final = 255
_POSITION: Final = bytes([_LOCAL]) + b"position"
_KEY_PREFIX: Final = bytes([_LOCAL]) + b"key/"
_POSITION_LAYOUT = struct.Struct(">QQQ")
_VALUE_PREFIX = struct.Struct(">IQ")
_SALT_BYTES: Final = 32
_PREFIX: Final = {table: bytes([table]) for table in Table}

JournalPlace = tuple[int, int, int]
"""(segment, bytes of it, batch): the same as `journal.Position`, which this package does not import."""


class Index:
    """LMDB as a cache of the journal. `apply` runs on the index thread, everything else on the loop."""

    def __init__(self, directory: Path, keys: Keys, randomness: Randomness | None) -> None:
        """Opens or creates. Raises DamageError when the file cannot be trusted: set it aside and rebuild.

        Without `randomness` it is opened for reading, beside the process that writes to it.
        """
        self._keys = keys
        self._path = directory / "data.mdb"
        try:
            if randomness is not None:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_size(self._path)
            self._env = lmdb.open(
                str(directory),
                map_size=limits.INDEX_MAP_BYTES,
                metasync=False,
                max_dbs=0,
                max_spare_txns=1,
                mode=0o600,
                readahead=False,
                readonly=randomness is None,
                create=randomness is not None,
                lib_version=_LIB_VERSION,
            )
        except lmdb.Error as error:
            raise DamageError(f"the index in {directory} does not open: {error}") from error
        except OSError as error:
            raise StoreError(f"the index in {directory} cannot be made: {error.strerror}") from error
        _keep_from_children(self._path)
        self._residence = Residence(self._path, limits.INDEX_MAP_BYTES)
        self._looks = 0
        self._sealers: dict[int, Sealer] = {}
        try:
            if randomness is not None:
                self._begin_key(randomness)
            self._read = self._env.begin()
            self._cursor = self._read.cursor()
        except lmdb.Error as error:
            self._residence.close()
            self._env.close()
            raise DamageError(f"the index in {directory} cannot be used: {error}") from error

    @property
    def position(self) -> JournalPlace:
        """The journal position that has been applied, as the loop's transaction sees it."""
        try:
            value = self._read.get(_POSITION)
        except lmdb.Error as error:
            raise self._damage(error) from error
        if value is None:
            return 0, 0, 0
        place: JournalPlace = _POSITION_LAYOUT.unpack(self._unseal(_POSITION, value))
        return place

    def renew(self) -> None:
        """Let the loop's transaction see what has been applied since."""
        self._read.abort()
        self._read = self._env.begin()
        self._cursor = self._read.cursor()

    def get(self, table: Table, key: bytes) -> bytes | None:
        """A record by its whole key."""
        full = _PREFIX[table] + key
        self._look()
        try:
            value = self._read.get(full)
        except lmdb.Error as error:
            raise self._damage(error) from error
        return None if value is None else self._unseal(full, value)

    def scan(self, table: Table, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(key, sealed record) of a table from `start` on. Only until the next `renew`; `open_record` gives the record."""
        prefix = _PREFIX[table]
        try:
            cursor = self._read.cursor()
            found = cursor.set_range(prefix + start)
            while found:
                self._look()
                key = cursor.key()
                if key[:1] != prefix:
                    return
                yield key[1:], cursor.value()
                found = cursor.next()
        except lmdb.Error as error:
            raise self._damage(error) from error

    def seek(self, table: Table, start: bytes) -> tuple[bytes, bytes] | None:
        """The first (key, sealed record) of a table from `start` on."""
        prefix = _PREFIX[table]
        self._look()
        try:
            if not self._cursor.set_range(prefix + start):
                return None
            key = self._cursor.key()
            return (key[1:], self._cursor.value()) if key[:1] == prefix else None
        except lmdb.Error as error:
            raise self._damage(error) from error

    def open_record(self, table: Table, key: bytes, sealed: bytes) -> bytes:
        """A record that `scan` or `seek` gave. Raises DamageError."""
        return self._unseal(_PREFIX[table] + key, sealed)

    def apply(self, batches: Sequence[tuple[JournalPlace, Iterable[Change]]], position: JournalPlace | None = None) -> None:
        """Write batches in one transaction, with the last position, or with one before it: what is behind that is applied again some time, which
        changes nothing. Raises StoreError; the environment is then not to be used again.
        """
        try:
            with self._env.begin(write=True) as txn:
                for _, changes in batches:
                    for number, (table, key, value) in enumerate(changes):
                        self._apply_change(txn, table, key, value)
                        if not number % LOOKS_BETWEEN:
                            self._residence.bound()
                if batches:
                    txn.put(_POSITION, self._seal(_POSITION, _POSITION_LAYOUT.pack(*(position or batches[-1][0]))))
            self._fill_up()
        except lmdb.MapFullError as error:
            raise StoreFullError("the index has outgrown its address space") from error
        except lmdb.Error as error:
            raise StoreError(f"the index could not be written: {error}") from error
        except OSError as error:
            raise StoreError(f"the index could not be written: {error.strerror}") from error

    def _fill_up(self) -> None:
        """Make the file as long as its meta page says. LMDB may leave it shorter when the last pages of a transaction were freed in it again;
        filled up (with a hole), a shorter file is one that was cut off. Nothing when somebody has removed it: it is whole as long as this process
        has it, and the next one builds another.
        """
        need = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        with suppress(FileNotFoundError):
            if self._path.stat().st_size < need:
                os.truncate(self._path, need)

    def distrust(self) -> None:
        """Have the index set aside and rebuilt the next time it is opened: a commit has failed."""
        with suppress(FileNotFoundError):  # somebody has removed all of it
            self._path.with_name(DISTRUSTED).touch()

    def data_bytes(self) -> int:
        """Size of the index's file."""
        return self._path.stat().st_size

    def close(self) -> None:
        """Let go of everything."""
        self._read.abort()
        self._env.close()
        self._residence.close()

    def _look(self) -> None:
        """Before something is read through the loop's transaction."""
        self._looks += 1
        if self._looks >= LOOKS_BETWEEN:
            self._looks = 0
            self._residence.bound()

    def _damage(self, error: lmdb.Error) -> DamageError:
        self.distrust()
        return DamageError(f"the index is damaged ({error}); unmount and mount again: it is built anew from the journal")

    def _apply_change(self, txn: "lmdb.Transaction[bytes]", table: int, key: bytes, value: bytes | None) -> None:
        full = bytes([table]) + key
        row = None
        if table in VERSIONED:
            object_key, epoch = split_version(key)
            row = _PREFIX[Table.CHANGES] + change_key(epoch, table, object_key)
        if value is None:
            txn.delete(full)
            if row is not None:
                txn.delete(row)
        else:
            txn.put(full, self._seal(full, value))
            if row is not None:
                txn.put(row, b"")

    def _begin_key(self, randomness: Randomness) -> None:
        salt = randomness.draw(_SALT_BYTES)
        with self._env.begin(write=True) as txn:
            cursor = txn.cursor()
            number = 0
            found = cursor.prev() if cursor.set_range(_KEY_PREFIX + b"\xff" * 4) else cursor.last()
            if found and cursor.key().startswith(_KEY_PREFIX):
                number = int.from_bytes(cursor.key()[len(_KEY_PREFIX) :], "big") + 1
            txn.put(_KEY_PREFIX + number.to_bytes(4, "big"), salt)
        self._key_number = number
        self._counter = 0
        self._sealer = self._sealers[number] = self._keys.local_sealer(b"index", salt)

    def _seal(self, full_key: bytes, plain: bytes) -> bytes:
        counter = self._counter = self._counter + 1
        return _VALUE_PREFIX.pack(self._key_number, counter) + self._sealer.seal(Sealed.INDEX_VALUE, counter, plain, context=full_key)

    def _unseal(self, full_key: bytes, value: bytes) -> bytes:
        if len(value) < _VALUE_PREFIX.size:
            raise DamageError("the index holds a value that is cut off")
        number, counter = _VALUE_PREFIX.unpack_from(value)
        sealer = self._sealers.get(number) or self._known_sealer(number)
        try:
            return sealer.open(Sealed.INDEX_VALUE, counter, value[_VALUE_PREFIX.size :], context=full_key)
        except DamageError:
            self.distrust()
            raise

    def _known_sealer(self, number: int) -> Sealer:
        salt = self._read.get(_KEY_PREFIX + number.to_bytes(4, "big"))
        if salt is None:
            raise DamageError("the index holds a value under a key that it does not name")
        sealer = self._sealers[number] = self._keys.local_sealer(b"index", salt)
        return sealer


_META_MAGIC: Final = 0xBEEFC0DE
_META = struct.Struct("<16xIIQQ")  # page header, magic, version, address, map size
_META_LAST_PAGE_OFFSET: Final = 16 + 4 + 4 + 8 + 8 + 2 * 48
_META_DB_PAD_OFFSET: Final = 16 + 4 + 4 + 8 + 8


def _check_size(path: Path) -> None:
    """Raises DamageError when the file is shorter than its meta pages say: reading past its end would be a SIGBUS.

    Layout: struct MDB_meta of LMDB 0.9 (mdb.c): magic, version, address, map size, two MDB_db of 48 bytes (the first one's pad is the page
    size), last page, transaction.
    """
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb") as file:
        first = file.read(4096)
        if len(first) < 4096:
            raise DamageError(f"{path} is cut off")
        magic, _, _, _ = _META.unpack_from(first)
        (page_bytes,) = struct.unpack_from("<I", first, _META_DB_PAD_OFFSET)
        if magic != _META_MAGIC or page_bytes not in (4096, 8192, 16384, 32768, 65536):
            raise DamageError(f"{path} is not an LMDB file")
        file.seek(page_bytes)
        second = file.read(4096)
    last = 0
    for page in (first, second):
        if len(page) < 4096 or _META.unpack_from(page)[0] != _META_MAGIC:
            raise DamageError(f"{path} has a damaged meta page")
        last = max(last, struct.unpack_from("<Q", page, _META_LAST_PAGE_OFFSET)[0])
    # Only now: another process may be writing to it, and it grows before its meta page says so.
    size = path.stat().st_size
    if size < (last + 1) * page_bytes:
        raise DamageError(f"{path} is cut off: {size} bytes instead of {(last + 1) * page_bytes}")


def _keep_from_children(path: Path) -> None:
    """LMDB leaves one of its descriptors open to programs that are started: they could write to the index."""
    file = os.stat(path)
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.fstat(int(name)), file):
                os.set_inheritable(int(name), False)
        except OSError:
            continue  # closed meanwhile
