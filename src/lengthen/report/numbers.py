"""Numbers as a reader wants them."""

__all__ = ["as_bytes", "as_count", "as_duration", "as_perplexity", "as_share"]


def as_count(number: int, thing: str) -> str:
    """A number with its noun, "1 step" or "2 steps".

    Args:
        number: how many.
        thing: in the singular; an s is added where there is not one.
    """
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def as_perplexity(value: float | None) -> str:
    """Two decimals, none above 1000; None is one too large for a float."""
    if value is None:
        return "over 1e308"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def as_share(part: int, whole: int) -> str:
    """Per cent with two digits that count.

    Args:
        part: of the whole.
        whole: more than 0.
    """
    percent = 100 * part / whole
    return f"{percent:.0f}%" if percent >= 10 or part == 0 else f"{percent:.2g}%"


def as_bytes(count: float) -> str:
    """In MB or GB (10^9 bytes)."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def as_duration(seconds: float) -> str:
    """In the two largest units."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
