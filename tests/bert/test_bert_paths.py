"""Where tokens went: counts and dead subtrees against plain loops, and pictures of every kind of model."""

import json
import xml.etree.ElementTree as ElementTree

import bert_reference as reference
import cmm.bert
import numpy as np
import pytest
from cmm.bert import paths
from cmm.bert.paths import Paths

plot_paths = pytest.importorskip("cmm.bert.plot_paths", reason="matplotlib, which draws, is not installed")


def random_paths(tokens, layers, trees, depth, seed=0):
    """Paths of tokens that turn at random."""
    rng = np.random.default_rng(seed)
    nodes = np.zeros((layers, tokens, trees, depth + 1), np.int32)
    for level in range(depth):
        nodes[..., level + 1] = 2 * nodes[..., level] + rng.integers(1, 3, nodes.shape[:-1])
    return Paths([f"t{number}" for number in range(tokens)], nodes)


SIZES = [(1, 1, 1, 0), (1, 2, 1, 3), (9, 2, 1, 5), (5, 3, 2, 4), (40, 1, 3, 2), (200, 1, 1, 11), (0, 2, 1, 3)]


@pytest.mark.parametrize("size", SIZES)
def test_usage_and_dead_subtrees_by_plain_loops(size):
    found = random_paths(*size)
    tokens, layers, trees, depth = size
    assert (found.layers, found.trees, found.depth, found.leaves) == (layers, trees, depth, 2**depth)
    expected = []
    for layer in range(layers):
        for tree in range(trees):
            visited = {int(node) for token in range(tokens) for node in found.nodes[layer, token, tree]}
            for node in range(2 ** (depth + 1) - 1):
                count = sum(node in found.nodes[layer, token, tree] for token in range(tokens))
                assert found.usage[layer, tree, node] == count
                if node not in visited and (node == 0 or (node - 1) // 2 in visited):
                    below = [node]
                    while 2 * below[-1] + 1 < 2 ** (depth + 1) - 1:
                        below.append(2 * below[-1] + 1)
                    level = int(np.log2(node + 1))
                    expected.append((layer, tree, node, level, 2 ** (len(below) - 1)))
    assert [tuple(one) for one in found.dead] == expected
    unvisited = int((found.leaf_usage == 0).sum())
    assert sum(one.leaves for one in found.dead) == unvisited
    assert found.leaf_usage.sum() == tokens * layers * trees


def test_paths_of_a_model():
    model = cmm.bert.random(reference.architecture(embedding__vocab_size=50), seed=1)
    sequences = [[1, 2, 3], [4], [5, 6, 7, 8]]
    found = paths.of_ids(model, sequences)
    assert found.tokens == ["1", "2", "3", "4", "5", "6", "7", "8"]
    expected = np.concatenate([model.trace([ids]).path_nodes[:, 0] for ids in sequences], axis=1)
    np.testing.assert_array_equal(found.nodes, expected)
    assert paths.of_ids(model, []).nodes.shape == (2, 0, 2, 4)


def test_dense_layers_have_no_paths():
    block = reference.architecture(intermed_type="ff", intermed_size=8, embedding__vocab_size=50)
    with pytest.raises(cmm.UnusableError, match="dense layers"):
        paths.of_ids(cmm.bert.random(block), [[1, 2]])


def test_report():
    """Two tokens at depth 2: both left, then one each way; the right half is dead."""
    nodes = np.array([[[[0, 1, 3]], [[0, 1, 4]]], [[[0, 1, 3]], [[0, 2, 6]]]], np.int32)
    lines = paths.report(Paths(["a", "b"], nodes)).splitlines()
    assert lines[0] == "2 tokens through 2 layers of 1x2, 1 tree of 4 leaves each"
    assert lines[3].split() == ["0", "2", "of", "4", "1", "2", "(2)"]
    assert lines[4].split() == ["1", "2", "of", "4", "1", "4", "(1),", "5", "(1)"]
    many = paths.report(random_paths(3, 1, 2, 6))
    assert "tree 0 " in many
    assert " more with " in many


def test_report_names_the_largest_and_counts_the_rest():
    found = random_paths(3, 1, 1, 8)
    line = paths.report(found).splitlines()[-1]
    largest = sorted((one.leaves for one in found.dead), reverse=True)
    named = [int(part.split(")")[0]) for part in line.split("(")[1:]]
    assert named == largest[: len(named)]
    assert f"and {len(largest) - len(named)} more with {sum(largest) - sum(named)} leaves" in line


def test_json_has_everything():
    found = random_paths(4, 2, 2, 3)
    data = json.loads(json.dumps(paths.as_json(found)))
    np.testing.assert_array_equal([layer["nodes"] for layer in data["layers"]], found.nodes)
    assert [tuple(one.values()) for one in data["dead_subtrees"]] == [tuple(one) for one in found.dead]
    assert data["tokens"] == found.tokens


# ---- pictures ------------------------------------------------------------------------------------------------------


def drawn(tmp_path, found, title="a title"):
    files = [tmp_path / "a.png", tmp_path / "a.svg"]
    plot_paths.draw(found, files, title=title)
    assert files[0].read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    root = ElementTree.parse(files[1]).getroot()
    return [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "size",
    [
        (1, 1, 1, 0),
        (9, 5, 1, 5),
        (28, 1, 1, 3),
        (29, 2, 1, 3),
        (28, 1, 8, 2),
        (40, 2, 3, 4),
        (3, 2, 9, 0),
        (3, 1, 128, 4),
        (40, 1, 1, 11),
        (40, 2, 9, 8),
        (3, 1, 9, 8),
        (1, 1, 1, 1),
    ],
)
def test_pictures_of_every_kind(tmp_path, size):
    tokens, layers, _, _ = size
    texts = drawn(tmp_path, random_paths(*size))
    assert "a title" in texts
    for layer in range(layers):
        assert f"layer {layer}" in texts
    assert sum("leaves visited" in text for text in texts) == layers
    if tokens <= 28:
        assert {f"t{token}" for token in range(tokens)} <= set(texts)
    else:
        assert "t0" not in texts


def test_tokens_are_named_below_every_layer(tmp_path):
    texts = drawn(tmp_path, random_paths(5, 3, 1, 4))
    assert all(texts.count(f"t{token}") == 1 + 3 for token in range(5))


def images(found):
    """The maps of a picture, by layer."""
    return [image.get_array() for axes in plot_paths._figure(found, "x").axes for image in axes.images]


@pytest.mark.parametrize("size", [(5, 2, 9, 3), (40, 3, 12, 4), (3, 1, 300, 0)])
def test_a_map_is_grey_where_no_token_came_and_darker_where_more_did(size):
    tokens, layers, trees, depth = size
    found = random_paths(*size)
    maps = images(found)[:: 2 if tokens <= 28 else 1]
    assert len(maps) == layers
    for layer, colours in enumerate(maps):
        for tree in range(trees):
            ends = [nodes[-1] - (2**depth - 1) for nodes in found.nodes[layer, :, tree]]
            counts = [ends.count(leaf) for leaf in range(2**depth)]
            light = colours[:, tree, :3].sum(axis=-1)
            for leaf, count in enumerate(counts):
                grey = np.allclose(colours[leaf, tree, :3], np.array([0xE9, 0xE9, 0xEC]) / 255)
                assert grey == (count == 0)
            ordered = sorted((count, -light[leaf]) for leaf, count in enumerate(counts) if count)
            assert [shade for _, shade in ordered] == sorted(shade for _, shade in ordered)


def test_a_map_of_many_leaves_puts_some_of_them_in_one_cell():
    found = random_paths(40, 1, 9, 8)
    (colours,) = images(found)
    assert colours.shape[:2] == (64, 9)
    cells = found.leaf_usage[0].reshape(9, 64, 4).sum(axis=-1)
    grey = np.isclose(colours[..., :3], np.array([0xE9, 0xE9, 0xEC]) / 255).all(axis=-1)
    np.testing.assert_array_equal(grey, cells.T == 0)


def test_a_map_shows_the_leaf_of_each_token():
    import matplotlib as mpl

    found = random_paths(5, 2, 9, 3)
    for layer, colours in enumerate(images(found)[1::2]):
        leaves = found.nodes[layer, :, :, -1] - 7
        np.testing.assert_allclose(colours, mpl.colormaps["viridis"](leaves / 7))


def test_tokens_of_any_kind_are_shown(tmp_path):
    found = random_paths(6, 1, 1, 3)
    tokens = ["$x^2$", "a\nb", "\x1b[2J", "字", "a" * 50, ""]
    texts = drawn(tmp_path, Paths(tokens, found.nodes), title="$\\alpha$ \u202e")
    assert "$x^2$" in texts
    assert "a\\nb" in texts
    assert "a" * 11 + "…" in texts


def test_the_same_paths_make_the_same_picture(tmp_path):
    for name in ("a", "b"):
        plot_paths.draw(random_paths(9, 2, 1, 5), [tmp_path / f"{name}.svg", tmp_path / f"{name}.png"], title="x")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_picture_leaves_matplotlib_as_it_was(tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    drawn(tmp_path, random_paths(3, 1, 1, 2))
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("seed", range(20))
def test_names_do_not_overlap(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 28))
    wanted = np.sort(rng.uniform(0, 6, count) if seed % 2 else rng.choice([0.0, 0.1, 3, 6], count)).tolist()
    places = np.array(plot_paths._apart(wanted, 0.2, 6.0))
    assert (np.diff(places) >= 0.2 - 1e-9).all()
    assert places.min() >= 0.1 - 1e-9
    assert places.max() <= 5.9 + 1e-9
    far = [x for x in wanted if sorted(abs(x - y) for y in wanted)[1:2] >= [0.5] and 0.1 < x < 5.9]
    if count == len(far):
        np.testing.assert_allclose(places, wanted)


def test_lines_of_one_tree_end_at_their_leaves_and_do_not_change_sides():
    """Within a node, tokens lie side by side in the order of their leaves."""
    found = random_paths(12, 1, 1, 3)
    figure = plot_paths.Figure()
    ends = plot_paths._lines(figure.add_subplot(), found, 0, 6.0)
    assert sorted(token for _, token in ends) == list(range(12))
    by_place = [int(found.nodes[0, token, 0, -1]) for _, token in sorted(ends)]
    assert by_place == sorted(by_place)
