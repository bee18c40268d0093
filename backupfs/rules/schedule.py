"""When a scheduled snapshot is due: decided from the clock's reading alone, so that years of it can be tested in a
moment.

The schedule has an anchor: the time of the last run or of the last run that was skipped. A run is due one interval
after it. However many intervals were missed (sleep, SIGSTOP, the machine was off), one run makes up for them. A clock
that was set back moves the anchor back with it, so that the next run is never more than one interval away.
"""

import enum
import re
from dataclasses import dataclass
from typing import Final

from backupfs.errors import UsageError

SECOND_NS: Final = 1_000_000_000
_UNITS_S: Final = {"w": 7 * 86_400, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
_INTERVAL: Final = re.compile("".join(rf"(?:(?P<{unit}>[0-9]{{1,9}}){unit})?" for unit in _UNITS_S), re.ASCII)
_LONGEST_S: Final = 10 * 366 * 86_400


class Action(enum.Enum):
    """What to do now."""

    RUN = "run"
    SKIP = "skip"
    """A run is due and nothing has changed."""
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Decision:
    """`anchor_ns` replaces the anchor that was asked with; the next run is due `wait_ns` from now."""

    action: Action
    anchor_ns: int
    wait_ns: int


def decide(now_ns: int, anchor_ns: int, every_ns: int, changed: bool) -> Decision:
    """See the module. `every_ns` is positive."""
    if now_ns < anchor_ns:
        return Decision(Action.WAIT, now_ns, every_ns)
    elapsed_ns = now_ns - anchor_ns
    if elapsed_ns < every_ns:
        return Decision(Action.WAIT, anchor_ns, every_ns - elapsed_ns)
    return Decision(Action.RUN if changed else Action.SKIP, now_ns, every_ns)


def parse_interval(text: str) -> int | None:
    """Nanoseconds of `2s`, `15m`, `1h30m`, `1d`, `2w`; None for `off`. Raises UsageError for anything else, for zero
    and above ten years.
    """
    if text == "off":
        return None
    match = _INTERVAL.fullmatch(text)
    seconds = sum(int(count) * _UNITS_S[unit] for unit, count in match.groupdict(default="0").items()) if match else 0
    if not 0 < seconds <= _LONGEST_S:
        raise UsageError(f"{text!r} is no interval: write it as 15m, 1h30m, 1d (units w, d, h, m, s; ten years at most), or off")
    return seconds * SECOND_NS


def show_interval(every_ns: int) -> str:
    """What `parse_interval` reads back."""
    rest_s = every_ns // SECOND_NS
    parts = []
    for unit, unit_s in _UNITS_S.items():
        count, rest_s = divmod(rest_s, unit_s)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
