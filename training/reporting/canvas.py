"""Where figures are drawn: the only user of matplotlib, its style, and SVG as pages want it."""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, PowerNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

__all__ = ["Axes", "AxesImage", "Figure", "LogNorm", "Normalize", "PowerNorm", "Rectangle"]  # for those who draw

SCALE = "cividis"  # alike to all kinds of colour vision, and in gray; Nuñez et al. 2018, PLOS ONE 13, e0199239
PANEL = 3.7  # inches: shown at its own size on a phone, where its text is as large as the page's notes
SMALL = 1.85  # two side by side on a phone
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and scales with the page
    "svg.hashsalt": "anychannel",  # the same record gives the same file
    "font.family": "sans-serif",
    "text.parse_math": False,  # a name may hold dollars
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_QUIET = {
    "font.size": 8.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
}


@contextmanager
def style(**more: object) -> Iterator[None]:
    """matplotlib's settings for all figures."""
    with mpl.rc_context({**_STYLE, **more}):
        yield


def panel(plot: Callable[[Axes], None], width: float = PANEL, height: float = 2.5) -> str:
    """A picture of one diagram for a page, as SVG.

    Args:
        plot: draws it.
        width, height: in inches.
    """
    with style(**_QUIET):
        figure = Figure(figsize=(width, height), layout="constrained")
        plot(figure.add_subplot())
        return svg(figure)


def svg(figure: Figure) -> str:
    """A figure as SVG, without a background."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def on_white(svg: str) -> str:
    """A picture for pages whose background is not ours to know."""
    return svg.replace("<svg ", '<svg style="background: white" ', 1)


def in_page(svg: str, prefix: str, label: str) -> str:
    """A picture within a page: lines and text in the colour of the text around it, light or dark, in its font.

    Args:
        svg: from `svg`.
        prefix: makes its ids unlike those of other pictures on the page.
        label: what it shows, for those who do not see it; plain text, already escaped.
    """
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1; font-family: inherit", text)
    text = text.replace("#000000", "currentColor")
    return text.replace("<svg ", f'<svg fill="currentColor" role="img" aria-label="{label}" ', 1)


def colour_pair(shade: float) -> tuple[str, str]:
    """The colour of a place on the scale, 0 … 1, and the one that text upon it is best read in; #rrggbb."""
    red, green, blue, _ = mpl.colormaps[SCALE](shade)
    light = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2  # relative luminance
    return to_hex((red, green, blue)), "#000000" if light > 0.18 else "#ffffff"
