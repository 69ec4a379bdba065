"""Untrusted text made fit to look at (escaping is the template's work), and numbers made fit to read."""

import math
import re

TEXT_LIMIT = 4000  # characters of one prompt or completion that a page shows

# What would hide, reorder or break text is shown by name: controls, direction marks, invisible and unpaired code
# points. Zero-width joiners stay: emoji and several scripts need them.
_CONTROLS = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: "\u2421"}
_NAMED = re.compile(
    "[\u0080-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufdd0-\ufdef\ufeff\ufff9-\ufffb\ufffe"
    "\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: object) -> str:
    """`str(text)` with every control, direction mark and invisible character replaced by something that can be seen."""
    shown = str(text).translate(_CONTROLS)
    return _NAMED.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", shown)


def cut(text: object, limit: int = TEXT_LIMIT) -> str:
    """Visible text of about `limit` characters: its beginning and, since answers come last, its end."""
    whole = str(text)
    if len(whole) <= limit:
        return visible(whole)
    tail = limit // 4
    note = f"\n[… {len(whole) - limit:,} of {len(whole):,} characters not shown …]\n"
    return visible(whole[: limit - tail]) + note + visible(whole[len(whole) - tail :])


def number(value: object) -> float | None:
    """A finite float, or None for anything else (text, NaN, infinity, an integer too large to plot)."""
    if not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def format_number(value: object, digits: int = 3) -> str:
    """`digits` significant digits: 0.413, 12,346, 1.5e-05; integers in full; anything else as visible text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return cut(value, 300)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**15 else f"{number(value) or math.inf:.3g}"
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude >= 9:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - magnitude, 0)}f}"


def format_short(value: object) -> str:
    """At most 3 significant digits, without trailing zeros: 1, 0.5, 3.8e-06; anything else as visible text."""
    return f"{value:.3g}" if isinstance(value, float) else format_number(value)


def format_share(value: float) -> str:
    """A share as a percentage: 0.5 %, 12 %, 100 %."""
    percent = 100 * value
    return f"{percent:.1f} %" if 0 < percent < 9.95 else f"{percent:.0f} %"


def format_duration(seconds: float) -> str:
    """Seconds in the two largest units: 0.42 s, 12.3 s, 2 min 14 s, 3 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 1 else f"{format_number(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def plural(count: int, noun: str) -> str:
    """'1 step', '2,000 steps'."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
