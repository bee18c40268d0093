"""The catalog by every way there is: from the first segment, and from each checkpoint. Section 11 of docs/format.md.

The newest checkpoint that holds and the segments behind it give the catalog. What else is there has to give the same: the
segments up to it are replayed too, from the first one or from an older checkpoint, and compared with every checkpoint that
they come by.
"""

from dataclasses import dataclass

from tests.decoder import catalog, checkpoints, journal
from tests.decoder.catalog import Carried, Catalog, Rows
from tests.decoder.checkpoints import Checkpoint
from tests.decoder.damage import Damage
from tests.decoder.journal import START, Position
from tests.decoder.sealing import Keys
from tests.decoder.store import Store


@dataclass(frozen=True, slots=True)
class History:
    catalog: Catalog
    carried: Carried
    """What batches behind the newest checkpoint carry."""
    checkpoints: list[Checkpoint]
    """Those that hold, by number."""
    begins: Position
    """Where the segments begin that can be replayed."""
    faults: list[str]
    """What is damaged, or missing, and was not needed: the catalog is known without it."""


def read(store: Store, keys: Keys) -> History:
    """Damage when the catalog cannot be known, or when two ways lead to two catalogs."""
    found = checkpoints.read(store, keys)
    held = found.held
    newest = held[-1].position if held else START
    chain = journal.chain(store.segments(), keys, newest, found.named)
    if newest == START and not chain.segments and (store.manifests() or store.parts()):
        raise Damage("no checkpoint holds, and the journal is missing")
    replay = _Replay(held)
    carried: Carried = {}
    for segment in chain.segments:
        replay.pass_by(segment.before)
        for number, content in segment.batches:
            found_there = catalog.carried(number, content)
            if segment.sequence > newest.segment:
                carried |= found_there
            replay.apply(number, content)
    replay.pass_by(newest)
    faults = found.faults + chain.faults
    for checkpoint in replay.left:
        if checkpoint.position.segment > chain.begins.segment:
            raise Damage(f"checkpoint {checkpoint.number}: at the end of segment {checkpoint.position.segment}, which no segment names")
        faults.append(f"checkpoint {checkpoint.number}: the journal from there to the next is not whole")
    return History(replay.catalog(newest.batch), carried, held, chain.begins, faults)


class _Replay:
    """Records that batches change, from the first place on where they are known."""

    def __init__(self, held: list[Checkpoint]) -> None:
        self.left = list(held)
        """Those that it has not come by."""
        self._rows: Rows | None = None
        self._batch = 0

    def pass_by(self, position: Position) -> None:
        """Begin here, or compare with the checkpoints that stand here."""
        if position == START and self._rows is None:
            self._rows = {}
        for checkpoint in [checkpoint for checkpoint in self.left if checkpoint.position.segment == position.segment]:
            if checkpoint.position != position:
                raise Damage(f"checkpoint {checkpoint.number}: names other bytes of segment {position.segment} than the next segment does")
            if self._rows is None:
                self._rows = dict(checkpoint.rows)
            elif self._rows != checkpoint.rows:
                places = self._rows.items() ^ checkpoint.rows.items()
                raise Damage(f"checkpoint {checkpoint.number}: not the catalog that the journal gives, {len(places)} records differ")
            self.left.remove(checkpoint)

    def apply(self, number: int, content: bytes) -> None:
        """The next batch; it changes nothing while nothing is known."""
        self._batch = number
        if self._rows is not None:
            catalog.apply(self._rows, number, content)

    def catalog(self, least_batch: int) -> Catalog:
        """After all of it."""
        assert self._rows is not None, "it has come by the start, or by a checkpoint"
        return catalog.read(self._rows, max(self._batch, least_batch))
