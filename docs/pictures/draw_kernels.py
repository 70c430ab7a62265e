"""Draw the pictures of internals/kernels.md: ``python docs/pictures/draw_kernels.py`` writes them beside itself.

descent.svg: how `grouped` buckets the tokens by subtree; tile.svg: the register tiles of the micro-kernels with
AVX-512; cuda.svg: what a warp, a block and the two kernels of the GPU's algorithms do.
"""

from pathlib import Path

from dark import with_dark
from draw_tree import FAINT, FILL, INK, PAPER, PATH, text

TINTS = ["#d6e8fa", "#fbe3d3", "#d9f0dc", "#eadff5"]  # of the four subtrees
EDGES = ["#2b6cb0", "#b3470b", "#2f7d3b", "#6b3fa0"]
LEAVES = [
    9,
    14,
    7,
    12,
    8,
    11,
    13,
    7,
    10,
    8,
    14,
    11,
    7,
    9,
    12,
    10,
]  # where each of 16 tokens ends, in a tree of depth 3


def box(x: float, y: float, width: float, height: float, *, fill: str = PAPER, edge: str = FAINT) -> str:
    """Return a rectangle with round corners."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}" stroke="{edge}" '
        f'stroke-width="1.2"/>'
    )


def arrow(x0: float, y0: float, x1: float, y1: float, color: str = INK) -> str:
    """Return an arrow from a point to a point."""
    return (
        f'<line x1="{x0:g}" y1="{y0:g}" x2="{x1:g}" y2="{y1:g}" stroke="{color}" stroke-width="1.4" '
        f'marker-end="url(#head)"/>'
    )


def lines(x: float, y: float, words: list[str], **how: str | int) -> str:
    """Return lines of words below each other, the first at y."""
    return "\n".join(text(x, y + 18 * i, line, **how) for i, line in enumerate(words))  # type: ignore[arg-type]


def sheet(width: int, height: int, title: str, parts: list[str]) -> str:
    """Return a picture on paper of its own, in light and dark colours."""
    head = (
        f'<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>'
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f"<title>{title}</title>",
        head,
        f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>',
        *parts,
        "</svg>",
        "",
    ]
    return with_dark("\n".join(parts))


# ---- descent and bucketing -----------------------------------------------------------------------------------------


def ancestor(leaf: int, level: int) -> int:
    """Return the node of a level that is on the path to a leaf of level 3."""
    return ((leaf + 1) >> (3 - level)) - 1


def tokens_at(y: float, places: list[tuple[float, int]]) -> list[str]:
    """Return tokens, each at a place, in the colour of the subtree that it goes to."""
    parts = []
    for x, token in places:
        bucket = ancestor(LEAVES[token], 2) - 3
        parts.append(box(x, y, 30, 26, fill=TINTS[bucket], edge=EDGES[bucket]))
        parts.append(text(x + 15, y + 18, str(token), size=13))
    return parts


def descent() -> str:
    """Return the picture of descent and bucketing: 16 tokens in blocks of 8 (of 128 in the code), 2 levels on top."""
    left, step = 255, 37
    blocks = [list(range(8)), list(range(8, 16))]
    parts = [
        text(20, 34, "grouped: tokens are bucketed by subtree, as experts in a grouped GEMM", size=17, anchor="start")
    ]
    labels = [
        ["tokens as they come,", "two blocks"],
        ["after node 0: each block's", "permutation is split in two"],
        ["after nodes 1 and 2:", "phase one is over"],
    ]
    for level, label in enumerate(labels):
        y = 64 + 76 * level
        parts.append(lines(20, y + 10, label, size=14, anchor="start"))
        for b, block in enumerate(blocks):
            order = sorted(block, key=lambda token: ancestor(LEAVES[token], level))  # a stable partition
            start = left + b * (8 * step + 30)
            parts += tokens_at(y, [(start + i * step, token) for i, token in enumerate(order)])
            groups = sorted({ancestor(LEAVES[token], level) for token in block})
            at = start
            for node in groups:
                count = sum(ancestor(LEAVES[token], level) == node for token in block)
                parts.append(
                    f'<line x1="{at}" y1="{y + 32}" x2="{at + count * step - 7}" y2="{y + 32}" stroke="{INK}"/>'
                )
                parts.append(text(at + (count * step - 7) / 2, y + 47, f"node {node}", size=12))
                at += count * step
    y = 310
    parts.append(
        lines(20, y + 10, ["counting sort of all tokens", "by subtree: the buckets"], size=14, anchor="start")
    )
    parts.append(arrow(left + 309, y - 24, left + 309, y - 6))
    place = float(left)
    for bucket in range(4):
        members = [token for token in range(16) if ancestor(LEAVES[token], 2) == 3 + bucket]
        parts += tokens_at(y, [(place + i * step, token) for i, token in enumerate(members)])
        width = len(members) * step - 7
        centre, top = place + width / 2, y + 50
        parts.append(arrow(centre, y + 30, centre, top))
        half = min(width / 2, 62)
        parts.append(
            f'<path d="M{centre:g} {top + 2}L{centre - half:g} {top + 66}L{centre + half:g} {top + 66}Z" '
            f'fill="{TINTS[bucket]}" stroke="{EDGES[bucket]}"/>'
        )
        parts.append(text(centre, top + 44, f"node {3 + bucket}", size=12))
        order = sorted(members, key=lambda token: LEAVES[token])
        parts.append(arrow(centre, top + 70, centre, top + 92))
        parts += tokens_at(top + 96, [(place + i * step, token) for i, token in enumerate(order)])
        seen = place
        for leaf in sorted({LEAVES[token] for token in members}):
            count = sum(LEAVES[token] == leaf for token in members)
            end = seen + count * step - 7
            parts.append(f'<line x1="{seen:g}" y1="{top + 128}" x2="{end:g}" y2="{top + 128}" stroke="{INK}"/>')
            parts.append(text((seen + end) / 2, top + 143, str(leaf), size=12))
            seen += count * step
        place += width + 17
    parts.append(
        lines(20, y + 82, ["phase two, bucket by bucket:", "the subtree's rows stay in L2"], size=14, anchor="start")
    )
    parts.append(
        lines(20, y + 156, ["in the order of the leaves:", "neighbours share rows"], size=14, anchor="start")
    )
    parts.append(box(left, 526, 619, 42, fill="#f3f4f6"))
    parts.append(
        text(
            left + 309,
            552,
            "epilogue: activations, weighted sum of the visited rows of w_out, store y",
            size=14,
        )
    )
    parts.append(arrow(left + 309, 508, left + 309, 522))
    return sheet(900, 590, "Descent and bucketing: blocks of tokens are split node by node, sorted by subtree", parts)


# ---- the register tile ---------------------------------------------------------------------------------------------


def cells(x: float, y: float, rows: list[str], columns: list[str], names: str, *, width: float) -> list[str]:
    """Return a grid of accumulators; `names` is a pattern for the name of each."""
    parts = []
    for r, row in enumerate(rows):
        for c, column in enumerate(columns):
            parts.append(box(x + c * width, y + r * 40, width - 6, 34, fill=FILL, edge=PATH))
            name = names.format(row=row, column=column)
            parts.append(text(x + c * width + (width - 6) / 2, y + r * 40 + 22, name, size=13))
    return parts


def tile() -> str:
    """Return the picture of both register tiles, with the sizes that they have with AVX-512 in float32."""
    tokens = ["0", "1", "2", "3"]
    parts = [
        text(30, 36, "dot micro-kernel: 4 tokens share one row of w_in", size=16, anchor="start"),
        text(530, 36, "weighted-sum micro-kernel: 4 tokens, 6 vectors of y", size=16, anchor="start"),
    ]
    x, y = 150, 130
    parts.append(text(x + 139, 72, "64 elements of the row: 4 vectors, each loaded once", size=13))
    for v in range(4):
        parts.append(box(x + v * 70, 82, 64, 30, fill=TINTS[0], edge=EDGES[0]))
        parts.append(text(x + v * 70 + 32, 102, f"w[{v}]", size=13))
        parts.append(arrow(x + v * 70 + 32, 114, x + v * 70 + 32, 128))
    for t in range(4):
        parts.append(box(30, y + t * 40, 100, 34, fill=TINTS[2], edge=EDGES[2]))
        parts.append(text(80, y + t * 40 + 22, f"x{t}[0 .. 3]", size=13))
        parts.append(arrow(132, y + t * 40 + 17, 148, y + t * 40 + 17))
    parts += cells(x, y, tokens, tokens, "sum{row},{column}", width=70)
    words = [
        "16 accumulators of 32 registers: 16 independent chains of",
        "fused multiply-adds, 4 of them for 5 loads. Next 64 elements,",
        "until the row ends; then a pairwise sum: vectors 0 + 2 and",
        "1 + 3, the two results, and the 16 lanes of what is left, half",
        "to half: one logit for each token. At the roots of per_token 3 rows",
        "share the 4 tokens: 24 accumulators, 12 for 7 loads.",
    ]
    parts.append(lines(30, 318, words, size=14, anchor="start"))
    x = 620
    parts.append(text(x + 150, 72, "6 vectors of one visited row of w_out", size=13))
    for v in range(6):
        parts.append(box(x + v * 51, 82, 45, 30, fill=TINTS[0], edge=EDGES[0]))
        parts.append(text(x + v * 51 + 22, 102, f"w[{v}]", size=12))
        parts.append(arrow(x + v * 51 + 22, 114, x + v * 51 + 22, 128))
    for t in range(4):
        parts.append(box(530, y + t * 40, 70, 34, fill=TINTS[3], edge=EDGES[3]))
        parts.append(text(565, y + t * 40 + 22, f"c{t}", size=13))
        parts.append(arrow(602, y + t * 40 + 17, 618, y + t * 40 + 17))
    parts += cells(x, y, tokens, [str(v) for v in range(6)], "y{row},{column}", width=51)
    words = [
        "24 accumulators, and the coefficients c (activations of the",
        "logits, each broadcast to a vector). A row that all 4 tokens",
        "visited is loaded once for them; where their paths have parted,",
        "each token takes its own rows. Then the columns are written:",
        "stored, added to y (another tree), or stored past the caches",
        "(non-temporal), and the next 6 vectors begin.",
    ]
    parts.append(lines(530, 318, words, size=14, anchor="start"))
    return sheet(1000, 440, "The register tiles of the dot and of the weighted-sum micro-kernel", parts)


# ---- the GPU -------------------------------------------------------------------------------------------------------


def cuda() -> str:
    """Return the picture of three algorithms of the level cuda: per_token, small_batch and grouped."""
    parts: list[str] = []
    titles = [
        (30, "per_token: a warp per token"),
        (320, "small_batch: a block per token, speculative"),
        (640, "grouped: two kernels, two phases"),
    ]
    parts += [text(x, 34, title, size=16, anchor="start") for x, title in titles]
    # per_token
    parts.append(box(30, 56, 240, 34, fill=TINTS[2], edge=EDGES[2]))
    parts.append(text(150, 78, "32 lanes hold x in registers", size=13))
    for level in range(3):
        y = 106 + level * 58
        parts.append(box(30, y, 240, 44, fill=TINTS[0], edge=EDGES[0]))
        parts.append(text(150, y + 18, f"level {level}: read one row of w_in,", size=13))
        parts.append(text(150, y + 35, "sum over the lanes, decide", size=13))
        parts.append(arrow(150, y - 14, 150, y - 2))
    parts.append(text(150, 290, "... one read waits for the one before", size=13))
    parts.append(box(30, 306, 240, 62, fill=FILL, edge=PATH))
    parts.append(arrow(150, 294, 150, 304))
    parts.append(
        lines(
            150,
            325,
            ["epilogue: a lane per level:", "32 activations at once; then the", "visited rows of w_out into y"],
            size=13,
        )
    )
    # wide
    for w in range(15):
        reads = w < 7
        x = 320 + w * 18
        parts.append(box(x, 56, 15, 34, fill=TINTS[0] if reads else FILL, edge=EDGES[0] if reads else PATH))
    parts.append(text(383, 108, "7 warps: w_in", size=13, color=EDGES[0]))
    parts.append(text(518, 108, "8 warps: w_out", size=13, color=PATH))
    places = {0: (452, 134), 1: (386, 176), 2: (518, 176), 3: (353, 222), 4: (419, 222), 5: (485, 222), 6: (551, 222)}
    taken = {0, 2, 5}
    for node in range(1, 7):
        (x0, y0), (x1, y1) = places[(node - 1) // 2], places[node]
        parts.append(
            f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="{PATH if node in taken else FAINT}" '
            f'stroke-width="{3 if node in taken else 1}"/>'
        )
    for node, (x, y) in places.items():
        parts.append(f'<circle cx="{x}" cy="{y}" r="14" fill="{TINTS[0]}" stroke="{EDGES[0]}"/>')
        parts.append(text(x, y + 5, f"w{node}", size=12))
    words = [
        "A round is three levels: 7 warps read",
        "all 7 rows of the subtree before any",
        "decision is known. A barrier; every warp",
        "reads the 7 signs by one ballot and",
        "follows them. Next round from there.",
        "Meanwhile 8 warps add the rows of w_out",
        "of the round before.",
    ]
    parts.append(lines(320, 262, words, size=13, anchor="start"))
    # grouped
    parts.append(box(640, 56, 290, 62, fill=TINTS[0], edge=EDGES[0]))
    parts.append(
        lines(
            785,
            75,
            [
                "top: a warp per token walks the top",
                "levels and joins the bucket of the",
                "subtree where it arrives (atomicAdd)",
            ],
            size=13,
        )
    )
    at = 640.0
    for bucket, width in enumerate([84, 46, 98, 62]):
        parts.append(box(at, 150, width - 4, 30, fill=TINTS[bucket], edge=EDGES[bucket]))
        parts.append(text(at + (width - 4) / 2, 170, f"bucket {bucket}" if width > 60 else str(bucket), size=12))
        at += width
    parts.append(arrow(785, 122, 785, 146))
    for sm in range(4):
        edge = 640 + sm * 72.5
        parts.append(f'<line x1="{edge:g}" y1="144" x2="{edge:g}" y2="208" stroke="{INK}" stroke-dasharray="3 3"/>')
        parts.append(text(edge + 36, 202, f"SM {sm}", size=12))
    parts.append(f'<line x1="930" y1="144" x2="930" y2="208" stroke="{INK}" stroke-dasharray="3 3"/>')
    parts.append(box(640, 226, 290, 62, fill=FILL, edge=PATH))
    parts.append(
        lines(
            785,
            245,
            [
                "bottom: each processor (SM) takes an",
                "equal stretch of the buckets; its warps",
                "share a subtree's rows in L1",
            ],
            size=13,
        )
    )
    parts.append(arrow(785, 210, 785, 223))
    words = [
        "The order within a bucket varies from",
        "run to run. It decides which warp takes",
        "a token, and nothing of its bits.",
    ]
    parts.append(lines(640, 314, words, size=13, anchor="start"))
    title = "Three algorithms of the level cuda: a warp per token, a block per token, two phases"
    return sheet(960, 400, title, parts)


PICTURES = {"descent.svg": descent, "tile.svg": tile, "cuda.svg": cuda}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (Path(__file__).parent / name).write_text(draw(), encoding="utf-8")
