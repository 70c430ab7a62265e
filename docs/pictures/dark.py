"""The colours of the pictures, light and dark: ``python docs/pictures/dark.py curve.svg`` gives a picture both.

A picture in SVG has its light colours in its elements, and for readers whose system is dark one rule a colour in a
style sheet of its own. That serves what draws with attributes (draw_*.py) and Matplotlib, which writes styles.
"""

import re
import sys
from pathlib import Path

DARK = {
    "#ffffff": "#10161d",  # paper
    "#f3f4f6": "#1a222c",
    "#24292f": "#dfe5ec",  # ink
    "#000000": "#dfe5ec",
    "#333333": "#c4ccd6",
    "#a8b0b8": "#566270",  # what is faint
    "#999999": "#8a96a3",
    "#e5e5e5": "#28323d",
    "#b3470b": "#ff9d57",  # the path, and the first of four subtrees, each with its edge
    "#fbe3d3": "#4a2a14",
    "#2b6cb0": "#79b8f5",
    "#d6e8fa": "#16324d",
    "#2f7d3b": "#74c683",
    "#d9f0dc": "#173a1f",
    "#6b3fa0": "#b795e8",
    "#eadff5": "#33244a",
    "#0072b2": "#56a8e0",  # lines of Matplotlib, of cmm bench and of losses.svg
    "#1f77b4": "#62b0e8",
    "#d62728": "#ff7b72",
}
_MARK = "@media (prefers-color-scheme: dark)"


def style(picture: str) -> str:
    """Return the style sheet for the colours of a picture."""
    rules = []
    for light in sorted(set(re.findall(r"#[0-9a-f]{6}", picture))):
        dark = DARK.get(light)
        if dark is None:
            continue
        for what in ("fill", "stroke"):
            if f'{what}="{light}"' in picture:
                rules.append(f'[{what}="{light}"] {{ {what}: {dark} }}')
            if f"{what}: {light}" in picture:
                rules.append(f'[style*="{what}: {light}"] {{ {what}: {dark} !important }}')
    # Text and shapes that say no colour are black.
    rules.append(f"svg {{ fill: {DARK['#000000']} }}")
    return "<style>\n" + _MARK + " {\n" + "\n".join(rules) + "\n}\n</style>"


def with_dark(picture: str) -> str:
    """Return a picture with the style sheet after its opening tag; as it is where it has one already."""
    if _MARK in picture:
        return picture
    head = re.search(r"<svg[^>]*>\n?", picture)
    if head is None:
        raise ValueError("the picture should be SVG, and has no <svg ...>")
    return f"{picture[: head.end()]}{style(picture)}\n{picture[head.end() :]}"


def main(names: list[str]) -> None:
    """Give pictures their dark colours."""
    for name in names:
        file = Path(name)
        file.write_text(with_dark(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
