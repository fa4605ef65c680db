"""Numbers as the sentences of the advice write them."""

from __future__ import annotations

MOST = 100.0
"""No rule promises more: what remains then is too short to be measured well."""


def percent(share: float) -> str:
    """Write a share of 1.

    Examples:
        >>> percent(0.37), percent(0.0234), percent(0.00001), percent(0.0)
        ('37 %', '2.3 %', 'less than 0.1 %', '0 %')
    """
    if share <= 0:
        return "0 %"
    if share < 0.0005:
        return "less than 0.1 %"
    return f"{share:.0%}".replace("%", " %") if share >= 0.0995 else f"{share:.1%}".replace("%", " %")


def duration(seconds: float) -> str:
    """Write a time.

    Examples:
        >>> duration(93.21), duration(1.24), duration(0.0123), duration(0.00045)
        ('93 s', '1.2 s', '12 ms', '450 µs')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 9.95 else f"{value:.1f} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def factor(value: float) -> str:
    """Write how many times as much something is.

    Examples:
        >>> factor(1.587), factor(1.062), factor(12.4), factor(2500.0)
        ('1.6x', '1.06x', '12x', '2,500x')
    """
    return f"{value:.2f}x" if value < 1.1 else f"{value:.1f}x" if value < 9.95 else f"{value:,.0f}x"


def times_faster(before_s: float, after_s: float) -> float:
    """Time before over time after, at least 1 and at most `MOST`.

    Examples:
        >>> times_faster(3.0, 2.0), times_faster(1.0, 2.0), times_faster(1.0, 0.0), times_faster(0.0, 0.0)
        (1.5, 1.0, 100.0, 1.0)
    """
    if before_s <= max(after_s, 0.0):
        return 1.0
    return min(before_s / after_s, MOST) if after_s > 0 else MOST
