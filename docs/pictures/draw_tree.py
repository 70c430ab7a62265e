"""Draw tree.svg, the picture in guide/operation.md: ``python docs/pictures/draw_tree.py > docs/pictures/tree.svg``.

One tree of depth 3, the path of one token through it, and the rows of the weights that the token reads.
"""

from dark import with_dark

DEPTH = 3
LOGITS = {0: 0.7, 2: -1.2, 5: 0.4, 12: -0.3}  # of the visited nodes, in the order of the visit
WIDTH, TREE_WIDTH, HEIGHT, TOP, STEP, RADIUS = 900, 620, 480, 80, 100, 19
PAPER, INK, FAINT, PATH, FILL = "#ffffff", "#24292f", "#a8b0b8", "#b3470b", "#fbe3d3"


def place(node: int) -> tuple[float, float]:
    """Return the centre of a node: level by level from the top, evenly spread within a level."""
    level = (node + 1).bit_length() - 1
    at = node + 1 - 2**level
    return TREE_WIDTH * (at + 0.5) / 2**level, TOP + STEP * level


def text(x: float, y: float, words: str, *, size: int = 14, color: str = INK, anchor: str = "middle") -> str:
    """Return words centred at, or beginning at, a point."""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}">{words}</text>'


def edge(child: int) -> str:
    """Return the line from a node's parent to it, and on the path the decision that was made."""
    (x0, y0), (x1, y1) = place((child - 1) // 2), place(child)
    taken = child in LOGITS
    line = (
        f'<line x1="{x0:g}" y1="{y0:g}" x2="{x1:g}" y2="{y1:g}" '
        f'stroke="{PATH if taken else FAINT}" stroke-width="{3 if taken else 1}"/>'
    )
    if not taken:
        return line
    right = child % 2 == 0
    words = "right" if right else "left"
    return line + text(
        (x0 + x1) / 2 + (14 if right else -14),
        (y0 + y1) / 2 - 2,
        words,
        size=13,
        color=PATH,
        anchor="start" if right else "end",
    )


def circle(node: int) -> str:
    """Return a node with its number, and its logit where it was visited."""
    x, y = place(node)
    visited = node in LOGITS
    shape = (
        f'<circle cx="{x:g}" cy="{y:g}" r="{RADIUS}" fill="{FILL if visited else PAPER}" '
        f'stroke="{PATH if visited else FAINT}" stroke-width="{3 if visited else 1}"/>'
    )
    number = text(x, y + 5, str(node), color=INK if visited else FAINT)
    if not visited:
        return shape + number
    leaf = node >= 2**DEPTH - 1
    place_of_logit = (x, y + RADIUS + 18, "middle") if leaf else (x + RADIUS + 6, y - 8, "start")
    logit = f"logit {LOGITS[node]:+.1f}".replace("-", "\u2212")
    return shape + number + text(place_of_logit[0], place_of_logit[1], logit, size=13, anchor=place_of_logit[2])


def rows(x: float, title: str, under: str) -> str:
    """Return a matrix of one row per node, in which the visited rows are marked."""
    nodes, height, width = 2 ** (DEPTH + 1) - 1, 22, 84
    parts = [text(x + width / 2, TOP - 30, title, size=15)]
    for node in range(nodes):
        visited = node in LOGITS
        parts.append(
            f'<rect x="{x:g}" y="{TOP - RADIUS + node * height}" width="{width}" height="{height}" '
            f'fill="{FILL if visited else PAPER}" stroke="{FAINT}"/>'
        )
        color = INK if visited else FAINT
        parts.append(text(x + width / 2, TOP - RADIUS + node * height + 16, str(node), size=13, color=color))
    parts.append(text(x + width / 2, TOP - RADIUS + nodes * height + 22, under, size=13))
    return "\n".join(parts)


def picture() -> str:
    """Return the whole picture as SVG."""
    edges = sorted(range(1, 2 ** (DEPTH + 1) - 1), key=LOGITS.__contains__)  # the path is drawn last, on top
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        "<title>A tree of depth 3 and the path 0, 2, 5, 12 of one token</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>',
        text(20, TOP - 30, "one tree, D = 3, N = 15 nodes", size=15, anchor="start"),
        *map(edge, edges),
        *map(circle, range(2 ** (DEPTH + 1) - 1)),
        text(20, TOP + DEPTH * STEP + 80, "The token x visits 4 of 15 nodes: 0, 2, 5, 12.", anchor="start"),
        rows(660, "W_in", "dot with x: logit"),
        rows(790, "W_out", "\u00d7 act(logit), into y"),
        "</svg>",
    ]
    return with_dark("\n".join(parts) + "\n")


if __name__ == "__main__":
    print(picture(), end="")
