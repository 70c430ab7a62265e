"""How the reference reads docstrings: an extension of Griffe, which mkdocs.yml names.

numpydoc's types are prose ("array_like, shape (..., d_in)") and Griffe would parse them as Python; roles of Sphinx
(:func:`levels`) become links; each of several parameters that share a line gets its own type and default.
"""

import re
from collections.abc import Iterator
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|exc):`~?([\w.]+)`")
TYPED = {"Parameters", "Other Parameters", "Attributes", "Returns", "Yields", "Raises", "Warns"}
NAMELESS = {"Raises", "Warns"}
# Modules whose names are public, the first that has a name wins.
PUBLIC = ("cmm", "cmm.bert", "cmm.blas", "cmm.torch")


def in_backquotes(docstring: str) -> str:
    """Return a docstring with its types in backquotes, which are no Python, so that they stay as they are."""
    lines = docstring.splitlines()
    section = ""
    for at, line in enumerate(lines):
        if at + 1 < len(lines) and line and re.fullmatch(r"-{3,}", lines[at + 1].strip()):
            section = line.strip()
        elif section in TYPED and line and not line[0].isspace() and not re.fullmatch(r"-{3,}", line):
            name, colon, kind = line.partition(" : ")
            if colon and not kind.startswith("{"):
                kind, default, rest = kind.partition(", default ")
                lines[at] = f"{name} : `{kind}`{default}{rest}"
            elif not colon and (section in NAMELESS or section in ("Returns", "Yields")):
                lines[at] = f"`{line}`"
    return "\n".join(lines)


def plain(docstring: str) -> str:
    """Return a docstring whose stars and underscores in words (K*N, _name) are no emphasis in Markdown."""

    def escape(text: str) -> str:
        text = re.sub(r"(?<=\w)\*(?=\w)", r"\\*", text)
        return re.sub(r"(?<!\w)_+(?=\w)|(?<=\w)_+(?!\w)", lambda found: found[0].replace("_", r"\_"), text)

    lines = []
    for line in docstring.splitlines():
        parts = re.split(r"(`[^`]*`|\[[^\]]*\])", line)
        lines.append(
            line if ">>>" in line else "".join(part if at % 2 else escape(part) for at, part in enumerate(parts))
        )
    return "\n".join(lines)


def objects(of: griffe.Object) -> Iterator[griffe.Object]:
    """Yield a module or class and all that is in it."""
    yield of
    for member in of.members.values():
        if not member.is_alias:
            yield from objects(member)  # type: ignore[arg-type]


class Docstrings(griffe.Extension):
    """Prepares the docstrings of a package when it was loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Prepare all docstrings of a package."""
        for one in objects(pkg):
            if one.docstring is not None:
                self._prepare(one, one.docstring, pkg)

    def _prepare(self, one: griffe.Object, docstring: griffe.Docstring, pkg: griffe.Module) -> None:
        def link(role: re.Match[str]) -> str:
            return f"[`{role[1]}`][{self._whole(role[1], one, pkg)}]"

        docstring.value = in_backquotes(plain(ROLE.sub(link, docstring.value.replace("``", "`"))))
        signature = one.parameters if isinstance(one, griffe.Function | griffe.Class) else griffe.Parameters()
        for section in docstring.parsed:
            if not isinstance(section.value, list):
                continue
            for item in section.value:
                said = getattr(item, "annotation", None)
                if isinstance(said, str):
                    item.annotation = said.strip("`").replace("`", "")
                if isinstance(item, griffe.DocstringParameter) and item.name.lstrip("*") in signature:
                    own = signature[item.name.lstrip("*")]
                    item.value = None if own.default is None else str(own.default)
                    if not isinstance(said, str):
                        item.annotation = own.annotation

    def _whole(self, name: str, one: griffe.Object, pkg: griffe.Module) -> str:
        """Return the public path of what a docstring names in short."""
        near: griffe.Object | None = one
        while near is not None and not near.is_module:
            if name in near.members:
                return f"{near.path}.{name}".replace(".fff.FFF", ".FFF")
            near = near.parent
        if name.startswith(f"{pkg.path}."):
            return name
        module = one.module.path
        places = sorted(
            PUBLIC, key=lambda place: (not module.startswith(f"{place}.") and module != place, -len(place))
        )
        for place in places:
            if name in pkg[place.partition(".")[2]].members if "." in place else name in pkg.members:
                return f"{place}.{name}"
        return f"{module}.{name}"
