"""The one read path: the tree as it was, or is, at an epoch."""

import errno
from collections.abc import Callable, Iterator

from backupfs import limits
from backupfs.catalog.catalog import Catalog
from backupfs.codec.keys import Keys
from backupfs.errors import FileSystemError
from backupfs.format import catalog as records
from backupfs.format.catalog import Dentry, Extent, Inode, Table, dentry_key, number_key
from backupfs.ids import ROOT_INO
from backupfs.rules.extents import clip


class View:
    """Records as a reader at `epoch` sees them; `EPOCH_MAX` is the present. Every function is atomic."""

    def __init__(self, catalog: Catalog, keys: Keys, epoch: int) -> None:
        self._catalog = catalog
        self._keys = keys
        self.epoch = epoch

    def inode(self, ino: int) -> Inode | None:
        """An inode's record. Of the present's, `InodeTable` knows newer ones."""
        value = self._catalog.value(Table.INODES, number_key(ino), self.epoch)
        return None if value is None else records.decode_inode(value)

    def find(self, parent: int, name: bytes) -> Dentry | None:
        """The entry of that name, if there is one; ENAMETOOLONG when there can be none."""
        if len(name) > limits.NAME_MAX_BYTES:
            raise FileSystemError(errno.ENAMETOOLONG)
        return self.entry(parent, self._keys.name_prf(parent, name))

    def entry(self, parent: int, prf: bytes) -> Dentry | None:
        """The entry of a name that is known by its PRF."""
        value = self._catalog.value(Table.DENTRIES, dentry_key(parent, prf), self.epoch)
        return None if value is None else records.decode_dentry(value)

    def resolve(self, path: bytes) -> int | None:
        """The inode that a path from the root leads to, links not followed; None when it leads nowhere."""
        ino = int(ROOT_INO)
        for name in filter(None, path.split(b"/")):
            found = self.find(ino, name)
            if found is None:
                return None
            ino = found.ino
        return ino

    def entries(self, ino: int, after_prf: bytes) -> Iterator[tuple[bytes, Dentry]]:
        """(PRF, entry) of a directory, in order, behind a PRF (or from the start). To be used up in one synchronous step."""
        group = number_key(ino)
        after = dentry_key(ino, after_prf) if after_prf else group
        for key, value in self._catalog.scan(Table.DENTRIES, group, after, self.epoch):
            yield key[8:], records.decode_dentry(value)

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """An inode's extended attributes."""
        value = self._catalog.value(Table.XATTRS, number_key(ino), self.epoch)
        return {} if value is None else records.decode_xattrs(value)

    def path_of(self, ino: int, inode: Callable[[int], Inode | None] | None = None) -> bytes | None:
        """One path that leads to an inode, from the root, without a leading slash; None when no name is left."""
        find = inode or self.inode
        parts: list[bytes] = []
        at = ino
        while at != ROOT_INO:
            record = find(at)
            for parent, prf in self.links(at, record):
                value = self._catalog.value(Table.DENTRIES, dentry_key(parent, prf), self.epoch)
                if value is not None:
                    parts.append(records.decode_dentry(value).name)
                    at = parent
                    break
            else:
                return None
        return b"/".join(reversed(parts))

    def extents(self, record: Inode) -> list[Extent]:
        """All extents of a file's record, those of its regions included."""
        if not record.data:
            return record.extents
        group = number_key(record.data)
        found: list[Extent] = []
        for _, value in self._catalog.scan(Table.REGIONS, group, group, self.epoch):
            found.extend(records.decode_region(value))
        return clip(found, 0, record.size)

    def links(self, ino: int, record: Inode | None) -> Iterator[tuple[int, bytes]]:
        """(directory, PRF) of an inode's names."""
        if record is None:
            return
        yield from record.links
        group = number_key(ino)
        for key, _ in self._catalog.scan(Table.LINKS, group, group, self.epoch):
            yield records.link_of(key)
