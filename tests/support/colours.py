"""Contrasts of colours, as WCAG defines them."""


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours such as `#0072b2`, from 1 to 21."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [channel / 255 for channel in bytes.fromhex(colour.removeprefix("#"))]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
