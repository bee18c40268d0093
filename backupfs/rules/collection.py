"""Which packs are rewritten so that their dead bytes come back: a plan, from facts about the packs alone.

A pack is immutable: the room of a dead blob in it comes back only when the live ones have been copied elsewhere. Copying costs reading and writing,
so the packs with the smallest live share come first, and nothing is done while little is dead. What is copied stays in proportion to what that frees.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

DEAD_SHARE_MAX: Final = 0.03
"""So much of all that packs hold may be dead before any is rewritten, and is left when it is done."""
DEAD_BYTES_MIN: Final = 1 << 20
"""Less than this is not worth a pack."""
COPIED_PER_FREED_MAX: Final = 2.0
"""Never are more bytes copied than this many times what copying them frees, unless somebody asks for all the room there is."""
COPIED_PER_FREED_THOROUGH: Final = 10.0
"""Nor more than this then."""


@dataclass(frozen=True, slots=True)
class PackUse:
    """`held_bytes` are the stored bytes of all blobs that were ever put into the pack, `live_bytes` of those that still count."""

    number: int
    held_bytes: int
    live_bytes: int

    @property
    def dead_bytes(self) -> int:
        """What rewriting it frees."""
        return self.held_bytes - self.live_bytes


@dataclass(frozen=True, slots=True)
class CollectionPlan:
    """Packs to rewrite, in order, and what that copies and frees."""

    packs: tuple[PackUse, ...] = ()

    @property
    def copied_bytes(self) -> int:
        """What is read and written again."""
        return sum(pack.live_bytes for pack in self.packs)

    @property
    def freed_bytes(self) -> int:
        """What comes back."""
        return sum(pack.dead_bytes for pack in self.packs)


def plan_collection(packs: Iterable[PackUse], *, thorough: bool = False) -> CollectionPlan:
    """The packs to rewrite. `thorough`: until next to nothing is dead, at whatever price within a wider bound."""
    known = list(packs)
    dead = sum(pack.dead_bytes for pack in known)
    allowed = 0.0 if thorough else max(DEAD_SHARE_MAX * sum(pack.held_bytes for pack in known), DEAD_BYTES_MIN)
    bound = COPIED_PER_FREED_THOROUGH if thorough else COPIED_PER_FREED_MAX
    chosen: list[PackUse] = []
    copied = freed = 0
    for pack in sorted(known, key=lambda pack: (pack.live_bytes / max(pack.held_bytes, 1), pack.number)):
        if dead - freed <= allowed or not pack.dead_bytes:
            break
        if copied + pack.live_bytes > bound * (freed + pack.dead_bytes):
            break
        chosen.append(pack)
        copied += pack.live_bytes
        freed += pack.dead_bytes
    return CollectionPlan(tuple(chosen))
