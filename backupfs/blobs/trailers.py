"""The ends of closed packs: what a pack says of itself."""

from backupfs.codec.keys import Keys, Sealer
from backupfs.errors import DamageError
from backupfs.format import objects
from backupfs.format import pack as pack_format
from backupfs.format.layout import Sealed
from backupfs.format.objects import HEADER_BYTES, PACK_MAGIC
from backupfs.format.pack import END_BYTES, FOOTER_BYTES, PackEntry, PackFooter
from backupfs.stores.port import Store


class PackEnd:
    """Footer and trailer of one closed pack. Blocks; DamageError when they do not hold, StoreError when they cannot be read."""

    def __init__(self, store: Store, keys: Keys, name: str, object_id: bytes) -> None:
        """Reads the end header. `name` is the pack's name in the store."""
        self._store = store
        self._name = name
        size = store.size(name)
        if size < HEADER_BYTES + END_BYTES:
            raise DamageError(f"it is {size} bytes long: cut off")
        self._end = size - HEADER_BYTES
        header = objects.decode(store.get(name, self._end, HEADER_BYTES), PACK_MAGIC, f"end of pack {object_id.hex()}")
        self.sealer: Sealer = keys.object_sealer(header, object_id)
        """Of the trailer and footer; of the blobs as well, unless recovery closed the pack."""

    def footer(self) -> PackFooter:
        """Where the trailer stands."""
        at = self._end - FOOTER_BYTES
        plain = self.sealer.open(Sealed.PACK_FOOTER, at, self._store.get(self._name, at, FOOTER_BYTES))
        return pack_format.decode_footer(plain, self._end + HEADER_BYTES)

    def held_bytes(self) -> int:
        """Stored bytes of all blobs that were ever put into the pack."""
        return self.footer().trailer_offset - HEADER_BYTES

    def entries(self) -> list[PackEntry]:
        """Every blob that was put into the pack."""
        footer = self.footer()
        sealed = self._store.get(self._name, footer.trailer_offset, footer.trailer_bytes)
        return pack_format.decode_trailer(self.sealer.open(Sealed.PACK_TRAILER, footer.trailer_offset, sealed), footer)
