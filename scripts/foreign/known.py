"""Differences that are known, each with its reason. A difference that is not here makes the script end with 1."""

from dataclasses import dataclass
from typing import Final

from scripts.foreign.result import FAILS, SKIPS


@dataclass(frozen=True, slots=True)
class Known:
    """On backupfs the row may come to `status` with no other details than the disk's and these."""

    status: str
    details: frozenset[str]
    reason: str


NO_FALLOCATE: Final = "pyfuse3 3.5 delivers no FALLOCATE: the kernel answers EOPNOTSUPP"
KNOWN: Final[dict[str, Known]] = {
    "stress-ng fallocate": Known(SKIPS, frozenset({"does nothing"}), NO_FALLOCATE),
    "stress-ng fpunch": Known(SKIPS, frozenset({"does not notice that it cannot"}), f"{NO_FALLOCATE}, which the stressor does not look at"),
    "stress-ng fiemap": Known(
        SKIPS,
        frozenset({"fiemap: FS_IOC_FIEMAP not supported on the file system, skipping stressor, filesystem type: fuse"}),
        "FUSE has no request for FIEMAP",
    ),
    "stress-ng fsize": Known(
        FAILS,
        frozenset(
            {
                "fsize: expected a SIGXFSZ signal at offset N (N), nothing happened",
                "fsize: fallocate unexpectedly succeeded at offset N (N), expecting EFBIG error",
            }
        ),
        f"{NO_FALLOCATE}, and the stressor then does its own fallocate by writing",
    ),
}
