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


KNOWN: Final[dict[str, Known]] = {
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
        "pyfuse3 3.5 delivers no FALLOCATE: the kernel answers EOPNOTSUPP, and the stressor then does its own fallocate by writing",
    ),
}
