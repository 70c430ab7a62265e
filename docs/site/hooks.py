"""What mkdocs.yml asks for beside the pages of docs/, which are written for a reader of the repository.

The pages that lie elsewhere in the repository (the changelog, the card of the models, ...), the home page with parts
of the README, the reference made of docstrings, the manual page of the command, the example scripts; links between
all of them and to files of the repository; pictures in light and dark.
"""

import ast
import html
import os
import posixpath
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]

# Pages of the site that are files of the repository elsewhere than at the same place of docs/.
ELSEWHERE = {
    "index.md": "docs/site/home.md",
    "map.md": "docs/index.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "model-card.md": "python/libcmm-models/cmm_models/MODEL_CARD.md",
    "reference/command.md": "docs/man/cmm.1",
}
EXAMPLES = sorted((ROOT / "docs/examples").glob("*.py"))
API = {  # module: the file that lists its public names
    "cmm": "python/cmm/__init__.py",
    "cmm.blas": "python/cmm/blas.py",
    "cmm.bert": "python/cmm/bert/__init__.py",
    "cmm.torch": "python/cmm/torch/__init__.py",
    "cmm.typing": "python/cmm/typing.py",
}
# Shortened addresses, and where they lead.
REDIRECTS = {
    "guide/index.html": "guide/operation.html",
    "reference/index.html": "reference/python.html",
    "reference/api/index.html": "reference/api/cmm.html",
    "internals/index.html": "internals/architecture.html",
    "examples/index.html": "examples/train.html",
}
# build_site.py says whether the site is to have the demo.
HAS_DEMO = os.environ.get("CMM_SITE_DEMO", "0") == "1"


def read(name: str) -> str:
    """Return the text of a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


# ---- pages that are made -------------------------------------------------------------------------------------------


def home() -> str:
    """Return the home page: ``home.md`` with the parts of the README that it names."""
    readme = read("README.md")

    def part(name: re.Match[str]) -> str:
        found = re.search(PARTS[name[1]], readme, re.MULTILINE | re.DOTALL)
        if found is None:
            raise PluginError(f"docs/site/home.md wants '{name[1]}' of README.md, which has no such part")
        # Its links are from the root of the repository, and home.md is two folders below.
        return re.sub(r"(?<=\]\()(?!\w+:|#)", "../../", found[1].strip())

    return re.sub(r"<!-- README: ([\w ]+) -->", part, read("docs/site/home.md"))


# What home.md can take from the README: what each part looks like there.
PARTS = {
    "claim": r"^# [^\n]+\n(.*?)^!\[",
    "table": r"^(\| microseconds per token.*?)\n\n",
    "host": r"^(One layer of 4095 neurons.*?)\n\n",
    "python": r"^(```python\n.*?^```)$",
    "main": r"<!-- command: main -->\n(```sh\n.*?^```)$",
    "tests": r"<!-- command: tests -->\n(```sh\n.*?^```)$",
    "not": r"^## What it does not do\n(.*?)^## ",
}


def public_names(module: str) -> list[str]:
    """Return ``__all__`` of a module, read and not imported."""
    for statement in ast.parse(read(API[module])).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    raise PluginError(f"{API[module]} has no __all__")


def griffe_path(module: str, name: str) -> str:
    """Return the path of a public name to Griffe, which takes a function with the name of its file for the file."""
    is_file = (ROOT / "python" / module.replace(".", "/") / f"{name}.py").is_file()
    return f"{module}.{name}.{name}" if is_file else f"{module}.{name}"


def reference(module: str, name: str) -> str:
    """Return what mkdocstrings is to put where a public name is explained."""
    path = griffe_path(module, name)
    if path != f"{module}.{name}":
        anchor, heading = f'<a id="{module}.{name}"></a>', f"heading: {module}.{name}\n      toc_label: {name}"
        return f"{anchor}\n\n::: {path}\n    options:\n      {heading}"
    shown = "\n    options:\n      show_if_no_docstring: true" if module == "cmm.typing" else ""
    return f"::: {module}.{name}{shown}"


def api_page(module: str) -> str:
    """Return the page of a module's public names, for mkdocstrings to fill."""
    about = ast.get_docstring(ast.parse(read(API[module]))) or ""
    first, _, rest = about.partition("\n\n")
    names = [name for name in public_names(module) if f"{module}.{name}" not in API]
    kinds: dict[str, list[str]] = {"Functions": [], "Classes": [], "Exceptions": [], "Names": []}
    for name in names:
        if name.endswith(("Error", "Warning")):
            kinds["Exceptions"].append(name)
        elif module == "cmm.typing" or name.startswith("__") or (name.isupper() and "_" in name):
            kinds["Names"].append(name)
        else:
            kinds["Classes" if name[0].isupper() else "Functions"].append(name)
    parts = [f"# `{module}`", first.replace("``", "`")]
    if rest.startswith(">>>"):
        parts.append(f"```pycon\n{rest}\n```")
    elif rest:
        parts.append(rest.replace("``", "`"))
    for kind, found in kinds.items():
        if found:
            parts.append(f"## {kind}")
            parts += [reference(module, name) for name in found]
    return "\n\n".join(parts) + "\n"


def example_page(file: Path) -> str:
    """Return a page with a script's own words and its source."""
    source = file.read_text(encoding="utf-8")
    about = ast.get_docstring(ast.parse(source)) or ""
    first, _, rest = about.partition("\n\n")
    code = source.partition('"""')[2].partition('"""')[2].lstrip("\n")
    parts = [f"# {file.name}", first.replace("``", "`")]
    if rest:
        parts.append(rest.replace("``", "`"))
    return "\n\n".join([*parts, f"```python\n{code}```"]) + "\n"


def manual_page() -> str:
    """Return ``docs/man/cmm.1``, the manual page, in Markdown: the requests of roff that make_manual.py writes."""

    def plain(line: str) -> str:
        return re.sub(r"\\f[BIRP]|\\[/,]", "", line).replace(r"\-", "-").replace(r"\e", "\\").replace(r"\&", "")

    out = [
        "# The command `cmm`",
        "The manual page, as `man cmm` shows it after an installation. What each subcommand is for is in "
        "[the Python interface](docs/reference/python.md#the-command-cmm).",
    ]
    body = read("docs/man/cmm.1").splitlines()
    usage: list[str] = []
    at = 0
    while at < len(body):
        line = body[at]
        at += 1
        if usage and not line.strip():
            out.append("```text\n" + "\n".join(usage) + "\n```")
            usage = []
        elif usage or plain(line).startswith("usage: "):
            usage.append(plain(line))
        elif line.startswith((".SH", ".SS")):
            words = plain(line[3:].strip())
            if not words:
                words = plain(body[at])
                at += 1
            out.append(f"## {words.strip().capitalize()}" if line.startswith(".SH") else f"### {words}")
        elif line == ".TP":
            out.append(f"`{plain(body[at])}`")
            out.append(f":   {html.escape(plain(body[at + 1]), quote=False)}")
            at += 2
        elif line == ".nf":
            end = body.index(".fi", at)
            out.append("```sh\n" + "\n".join(plain(word) for word in body[at:end]) + "\n```")
            at = end + 1
        elif line.startswith(".B "):
            out.append(f"`{plain(line[3:])} {plain(body[at])}`")
            at += 1
        elif line.startswith((".TH", ".RS", ".RE")) or not line.strip():
            continue
        elif line.startswith("."):
            raise PluginError(f"docs/man/cmm.1 has {line!r}, which docs/site/hooks.py does not know")
        else:
            out.append(html.escape(plain(line), quote=False))
    return "\n\n".join(out) + "\n"


def made_pages() -> Iterator[tuple[str, str, str]]:
    """Yield the place in the site, the text, and the file of the repository of each page that is not of docs/."""
    for place, source in ELSEWHERE.items():
        if place == "index.md":
            yield place, home(), source
        elif place == "reference/command.md":
            yield place, manual_page(), "README.md"  # links in it are from the root
        else:
            yield place, read(source), source
    for module, source in API.items():
        yield f"reference/api/{module}.md", api_page(module), source
    for file in EXAMPLES:
        yield f"examples/{file.stem}.md", example_page(file), f"docs/examples/{file.name}"
    if HAS_DEMO:  # a page for the search and the links; build_site.py puts the demo in its place
        about = "The packaged model fills in a blank in your browser, and shows each token's way through the trees."
        yield "demo/index.md", f"# Try it\n\n{about}\n", "docs/demo/build.py"


# ---- pictures in light and dark ------------------------------------------------------------------------------------

DARK = re.compile(r"@media \(prefers-color-scheme: dark\) \{\n(.*?)\n\}\n", re.DOTALL)


def themed(picture: str) -> tuple[str, str]:
    """Return a picture that follows the system, as one in light and one in dark, for a page that has a switch."""
    return DARK.sub("", picture), DARK.sub(r"\1\n", picture)


# ---- events of MkDocs ----------------------------------------------------------------------------------------------

_sources: dict[str, str] = {}  # of the pages of the site, by their place: the file of the repository


def on_config(config: MkDocsConfig) -> None:
    """Add the made pages to the navigation."""
    nav: list[Any] = config.nav or []
    parts = {key: value for entry in nav for key, value in entry.items()}
    parts["Reference"].insert(1, {"API": [{module: f"reference/api/{module}.md"} for module in API]})
    parts["Project"].append({"Example scripts": [{file.name: f"examples/{file.stem}.md"} for file in EXAMPLES]})
    if HAS_DEMO:
        nav.insert(1, {"Try it": "demo/index.md"})


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages, and the dark pictures."""
    _sources.clear()
    index = files.get_file_from_path("index.md")
    if index:
        files.remove(index)  # the map of the repository, which has another place here
    for place, text, source in made_pages():
        files.append(File.generated(config, place, content=text, inclusion=InclusionLevel.INCLUDED))
        _sources[place] = source
    for file in list(files):
        if file.src_uri.endswith(".md"):
            _sources.setdefault(file.src_uri, f"docs/{file.src_uri}")
        elif file.src_uri.endswith(".svg"):
            light, dark = themed(file.content_string)
            if light != dark:
                files.remove(file)
                files.append(File.generated(config, file.src_uri, content=light))
                files.append(File.generated(config, f"{file.src_uri.removesuffix('.svg')}.dark.svg", content=dark))
    return files


CODE = re.compile(r"(^( *)```.*?^\2```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Return a page of which everything but code was changed."""
    out, at = [], 0
    for code in CODE.finditer(text):
        out += [change(text[at : code.start()]), code[0]]
        at = code.end()
    return "".join([*out, change(text[at:])])


def with_references(markdown: str) -> str:
    """Return a page on which public names in backquotes lead to the reference; not in headings and other links."""
    names = {f"{module}.{name}": griffe_path(module, name) for module in API for name in public_names(module)}
    names = {name: path for name, path in names.items() if name not in API}

    def reference(code: re.Match[str]) -> str:
        return f"[{code[0]}][{names[code[1]]}]" if code[1] in names else code[0]

    blocks = re.split(r"(^ *```.*?^ *```$|^#.*?$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        block if at % 2 else re.sub(r"(?<!\[)`(cmm\.[\w.]+)(?:\(\))?`(?!\])", reference, block)
        for at, block in enumerate(blocks)
    )


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where their files are in the site, or in the repository; mark what an interpreter was told."""
    place, source = page.file.src_uri, _sources[page.file.src_uri]
    by_source = {file: there for there, file in _sources.items()}
    if HAS_DEMO:
        by_source["docs/demo/index.html"] = "demo/index.md"
    here = posixpath.dirname(place) or "."

    def there(target: str) -> str:
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not name:
            return target
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        anchor = f"#{anchor}" if anchor else ""
        inside = by_source.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
        if inside and files.get_file_from_path(inside):
            return posixpath.relpath(inside, here) + anchor
        if not (ROOT / file).exists():
            raise PluginError(f"{source} links to {target}, and there is no {file}")
        return f"{REPOSITORY}/{'tree' if (ROOT / file).is_dir() else 'blob'}/main/{file}{anchor}"

    if not place.startswith("reference/api/"):
        markdown = with_references(markdown)
    markdown = outside_code(markdown, lambda text: re.sub(r"(?<=\]\()[^)\s]+(?=\))", lambda m: there(m[0]), text))
    # A bar in code in a table is written `\|` on GitHub, and | here.
    markdown = re.sub(
        r"^\|.*$",
        lambda row: re.sub(r"`[^`]+`", lambda c: c[0].replace("\\|", "|"), row[0]),
        markdown,
        flags=re.MULTILINE,
    )
    page.edit_url = (
        None
        if place == "index.md"
        else f"{REPOSITORY}/blob/main/{'docs/man/cmm.1' if place == 'reference/command.md' else source}"
    )
    return re.sub(r"^( *)```python\n(?= *>>>)", r"\1```pycon\n", markdown, flags=re.MULTILINE)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show each picture that has a dark sister as a pair, of which the page shows one."""

    def pair(image: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.dest_uri), image[1]))
        dark = f"{file.removesuffix('.svg')}.dark.svg"
        if not files.get_file_from_path(dark):
            return image[0]
        light = image[0].replace(image[1], f"{image[1]}#only-light")
        return light + image[0].replace(image[1], f"{image[1].removesuffix('.svg')}.dark.svg#only-dark")

    return re.sub(r'<img [^>]*src="([^"]+\.svg)"[^>]*>', pair, html)


def on_post_build(config: MkDocsConfig) -> None:
    """Write the redirects."""
    for name, target in REDIRECTS.items():
        file = Path(config.site_dir) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        link = os.path.relpath(target, posixpath.dirname(name))
        file.write_text(
            f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>This page is elsewhere</title>\n'
            f'<meta name="robots" content="noindex">\n<meta http-equiv="refresh" content="0; url={link}">\n'
            f'<p>This page is <a href="{link}">there</a>.</p>\n</html>\n',
            encoding="utf-8",
        )
