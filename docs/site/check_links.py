"""Check the built site: ``python docs/site/check_links.py FOLDER``.

Of every page: each link and each picture is there, with its anchor; nothing is loaded from elsewhere. Of the site:
every page can be reached from the first one by links, and every picture is shown. Nothing is fetched.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

PICTURES = {".svg", ".png", ".jpg", ".webp", ".gif"}
NOT_LINKED = {"404.html"}  # what a server shows where there is no page


class Reader(HTMLParser):
    """What a page has: its anchors, what it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element names, links to and loads."""
        said = {name: value or "" for name, value in attrs}
        self.anchors.update(said[name] for name in ("id", "name") if said.get(name) and (name == "id" or tag == "a"))
        if tag in ("a", "area") and "href" in said:
            self.links.append(said["href"])
        elif tag == "link" and "href" in said:
            # next, prev and the like say where other pages are; stylesheets and icons are loaded
            others = {"next", "prev", "canonical", "alternate"} & set(said.get("rel", "").split())
            (self.links if others else self.loads).append(said["href"])
        elif tag == "meta" and said.get("http-equiv", "").lower() == "refresh":
            self.links += re.findall(r"url=(.+)", said.get("content", ""))
        if tag != "a":
            self.loads += [said[name] for name in ("src", "poster", "data") if said.get(name) and tag != "meta"]
            self.loads += [part.split()[0] for part in said.get("srcset", "").split(",") if part.strip()]


def problems(folder: Path) -> Iterator[str]:
    """Yield a sentence for each thing that is wrong with the site in a folder."""
    folder = folder.resolve()
    pages = {file: Reader(file.read_text(encoding="utf-8")) for file in sorted(folder.rglob("*.html"))}
    if folder / "index.html" not in pages:
        yield f"{folder} has no index.html"
        return
    leads_to: dict[Path, set[Path]] = {page: set() for page in pages}
    shown: set[Path] = set()
    for page, found in pages.items():
        name = page.relative_to(folder)
        for target in [*found.links, *found.loads]:
            address = urlsplit(target)
            loaded = target in found.loads
            if address.scheme in ("data", "mailto", "javascript") and not (loaded and address.scheme != "data"):
                continue
            if address.scheme or address.netloc:
                if loaded:
                    yield f"{name} loads {target}, from elsewhere"
                elif address.scheme != "https":
                    yield f"{name} links to {target}, which is not https"
                continue
            if page.name in NOT_LINKED and address.path.startswith("/"):
                file = folder / unquote(address.path.lstrip("/"))
            else:
                file = (page.parent / unquote(address.path)).resolve() if address.path else page
            if file.is_dir():
                file /= "index.html"
            if folder not in file.parents or not file.is_file():
                yield f"{name} {'loads' if loaded else 'links to'} {target}, which is not there"
                continue
            shown.add(file)
            if file in pages:
                leads_to[page].add(file)
                anchor = unquote(address.fragment)
                if anchor and anchor not in pages[file].anchors:
                    yield f"{name} links to {target}, and {file.relative_to(folder)} has no such anchor"
    for sheet in folder.rglob("*.css"):
        for target in re.findall(r"url\(\s*[\"']?([^)\"']+)", sheet.read_text(encoding="utf-8")):
            if re.match(r"(https?:)?//", target):
                yield f"{sheet.relative_to(folder)} loads {target}, from elsewhere"
    reached, new = set(), {folder / "index.html"}
    while new:
        reached |= new
        new = set().union(*(leads_to[page] for page in new)) - reached
    for page, found in pages.items():
        moved = any(target for target in found.links) and 'http-equiv="refresh"' in page.read_text(encoding="utf-8")
        if page not in reached and page.name not in NOT_LINKED and not moved:
            yield f"no link leads to {page.relative_to(folder)}"
    for file in sorted(folder.rglob("*")):
        if file.suffix in PICTURES and file not in shown and "assets" not in file.relative_to(folder).parts:
            yield f"no page shows {file.relative_to(folder)}"


def main(words: list[str]) -> int:
    """Say what is wrong; return 1 where something is."""
    folder = Path(words[0])
    found = list(problems(folder))
    for problem in found:
        print(problem)
    pages = sum(1 for _ in folder.rglob("*.html"))
    print(f"{pages} pages: {len(found) or 'no'} {'problem' if len(found) == 1 else 'problems'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
