"""Durations, sizes, counts and shares as people write them, and as they are shown to them.

Whatever `show_…` gives, its `parse_…` reads back as the same value. What cannot be read is refused in a sentence that says how to write it;
nothing becomes zero in silence.
"""

import re
from decimal import Decimal
from fractions import Fraction
from typing import Final

from backupfs.errors import UsageError
from backupfs.rules.policy import SECOND_NS, Duration, Keep

TEN_YEARS_NS: Final = 10 * 366 * 86_400 * SECOND_NS
"""The longest interval of a schedule."""
CENTURY_NS: Final = 10 * TEN_YEARS_NS
"""The longest duration of a keep rule."""
SIZE_BYTES_MAX: Final = 2**63 - 1
_UNITS_S: Final = {"w": 7 * 86_400, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION: Final = re.compile("".join(rf"(?:(?P<{unit}>[0-9]{{1,10}}){unit})?" for unit in _UNITS_S), re.ASCII)
_COUNT: Final = re.compile("[0-9]{1,9}", re.ASCII)
_PREFIXES: Final = "KMGTPE"
_SIZE_UNITS: Final = {
    "B": 1,
    **{f"{prefix}iB": 1024 ** (power + 1) for power, prefix in enumerate(_PREFIXES)},
    **{f"{prefix}B": 1000 ** (power + 1) for power, prefix in enumerate(_PREFIXES)},
}
_FACTORS: Final = {unit.lower(): factor for unit, factor in _SIZE_UNITS.items()}
_SIZE: Final = re.compile("(?P<number>[0-9]{1,19}(?:[.][0-9]{1,9})?) ?(?P<unit>[A-Za-z]{0,3})", re.ASCII)
_SHARE: Final = re.compile("(?P<percent>[0-9]{1,2}(?:[.][0-9]{1,9})?) ?%", re.ASCII)


# --- durations ------------------------------------------------------------------------------------------------------


def parse_interval(text: str) -> int | None:
    """Nanoseconds of `2s`, `15m`, `1h30m`, `1d`, `2w`; None for `off`. Raises UsageError for anything else, for zero
    and above ten years.
    """
    if text == "off":
        return None
    interval_ns = _duration_ns(text)
    if not 0 < interval_ns <= TEN_YEARS_NS:
        raise UsageError(f"{text!r} is no interval: write it as 15m, 1h30m, 1d (units w, d, h, m, s; ten years at most), or off")
    return interval_ns


def show_interval(every_ns: int) -> str:
    """What `parse_interval` reads back, of whole seconds."""
    return show_duration(every_ns)


def parse_duration(text: str) -> int:
    """Nanoseconds of `90s`, `15m`, `1h30m`, `30d`, `2w`, `1w2d`. Raises UsageError for anything else, for zero and above
    a hundred years.
    """
    duration_ns = _duration_ns(text)
    if not 0 < duration_ns <= CENTURY_NS:
        raise UsageError(
            f"{text!r} is no duration: write it as 90s, 15m, 1h30m, 30d, 2w or 1w2d "
            "(units w, d, h, m, s in this order; m is a minute, and a month is no duration; a hundred years at most)"
        )
    return duration_ns


def show_duration(duration_ns: int) -> str:
    """What `parse_duration` reads back, of whole seconds."""
    rest_s = duration_ns // SECOND_NS
    parts = []
    for unit, unit_s in _UNITS_S.items():
        count, rest_s = divmod(rest_s, unit_s)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def _duration_ns(text: str) -> int:
    """0: it is none."""
    match = _DURATION.fullmatch(text)
    return sum(int(count) * _UNITS_S[unit] for unit, count in match.groupdict(default="0").items()) * SECOND_NS if match else 0


# --- what a keep rule is given --------------------------------------------------------------------------------------


def parse_keep(text: str) -> Keep:
    """`24` is a count, `30d` a duration; `0` is no rule. Raises UsageError for anything else."""
    if _COUNT.fullmatch(text):
        return int(text)
    if not 0 < (duration_ns := _duration_ns(text)) <= CENTURY_NS:
        raise UsageError(f"{text!r} says neither how many nor how long: write a count like 24, or a duration like 36h, 30d or 1w2d")
    return Duration(duration_ns)


def show_keep(keep: Keep) -> str:
    """What `parse_keep` reads back, of whole seconds."""
    return show_duration(keep.ns) if isinstance(keep, Duration) else str(keep)


# --- sizes ----------------------------------------------------------------------------------------------------------


def parse_size(text: str) -> int:
    """Bytes of `5GiB`, `500 MB`, `1.5TiB`, `1048576`; parts of a byte are dropped. Raises UsageError for anything else,
    for less than a byte, and for 8 EiB and more.
    """
    match = _SIZE.fullmatch(text)
    unit = match["unit"].lower() if match else ""
    if match and unit in {prefix.lower() for prefix in _PREFIXES}:
        raise UsageError(f"{text!r} is no size: write {text}iB for powers of 1024, or {text}B for powers of 1000")
    factor = _FACTORS.get(unit or "b")
    size_bytes = int(Fraction(match["number"]) * factor) if match and factor else 0
    if not 0 < size_bytes <= SIZE_BYTES_MAX:
        raise UsageError(
            f"{text!r} is no size: write it as 5GiB, 500 MB, 1.5TiB or 1048576 (units B, KiB to EiB, kB to EB; from one byte to below 8EiB)"
        )
    return size_bytes


def show_size(size_bytes: int) -> str:
    """What `parse_size` reads back: in the unit that needs the fewest digits, exactly."""
    exact = [(size_bytes // factor, unit) for unit, factor in _SIZE_UNITS.items() if size_bytes % factor == 0 and size_bytes >= factor]
    count, unit = min(exact, default=(size_bytes, "B"))
    return f"{count}{unit}"


# --- shares ---------------------------------------------------------------------------------------------------------


def parse_share(text: str) -> float:
    """`10%` is 0.1. Raises UsageError for anything else, for nothing and for all."""
    match = _SHARE.fullmatch(text)
    share = float(Decimal(match["percent"]) / 100) if match else 0.0
    if not share:
        raise UsageError(f"{text!r} is no share: write it as 10% or 2.5% (above 0% and below 100%)")
    return share


def show_share(share: float) -> str:
    """What `parse_share` reads back."""
    percent = f"{Decimal(repr(share)) * 100:f}"
    return f"{percent.rstrip('0').rstrip('.') if '.' in percent else percent}%"
