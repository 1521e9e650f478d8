"""The few shapes that the pictures are made of. Colours come from the page's style sheet, by class."""

from collections.abc import Iterable, Sequence
from html import escape


def text(x: float, y: float, content: str, style: str = "", *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def rect(
    x: float, y: float, width: float, height: float, style: str, *, title: str = "", radius: float = 0, fill: str = ""
) -> str:
    """`fill` is a CSS colour that the class does not set."""
    inner = f"<title>{escape(title)}</title>" if title else ""
    colour = f' style="--hue:{fill}"' if fill else ""
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.6):.1f}" height="{height:.1f}" rx="{radius:g}"'
    return f'<rect {shape} class="{style}"{colour}>{inner}</rect>'


def path(points: Sequence[tuple[float, float]], style: str) -> str:
    """A line through all points."""
    steps = " ".join(f"{'L' if number else 'M'}{x:.1f} {y:.1f}" for number, (x, y) in enumerate(points))
    return f'<path d="{steps}" class="{style}"/>' if points else ""


def area(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], style: str) -> str:
    """What lies between two lines."""
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in [*upper, *reversed(lower)])
    return f'<path d="M{steps}Z" class="{style}"/>' if upper else ""


def dots(points: Iterable[tuple[float, float]], style: str) -> str:
    """Many round dots in one shape: lines without length and with round ends."""
    steps = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    return f'<path d="{steps}" class="{style}"/>' if steps else ""


def figure(width: float, height: float, shapes: Iterable[str], label: str) -> str:
    """The style sheet may scale it; without one it has its natural size."""
    inner = "\n".join(shape for shape in shapes if shape)
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<svg {size} role="img" aria-label="{escape(label)}">\n{inner}\n</svg>'


def ticks(limit: float, count: int = 8) -> list[float]:
    """Round numbers from 0 to a limit, about so many."""
    raw = max(limit, 1e-9) / count
    scale = 1.0
    while scale * 10 <= raw:
        scale *= 10
    while scale > raw:
        scale /= 10
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= raw * 0.999)
    return [step * number for number in range(int(limit / step + 1e-9) + 1)]
