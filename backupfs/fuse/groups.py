"""Which supplementary groups a caller has: a request tells only one group, and the rules about set-gid ask for all."""

from collections.abc import Collection


def groups_of(pid: int) -> Collection[int]:
    """The supplementary groups of a process or thread that waits for its answer, so that its number is still its own. Empty where /proc does not
    tell, as for one in another PID namespace: then it counts as a member of its own group only.
    """
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
            line = next(line for line in status if line.startswith("Groups:"))
    except OSError:
        return ()
    return frozenset(map(int, line.split()[1:]))
