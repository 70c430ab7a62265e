"""The README as a package index shows it, where no other file lies beside it: with whole addresses.

scikit-build-core asks this for the field readme. The address is that of [project.urls] in pyproject.toml.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A link in Markdown, or a picture, to a file of this repository.
_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<file>(?!https?://|#)[^)\s]+)\)")


def with_addresses(text: str, repository: str) -> str:
    """Return a page of the repository's root whose links and pictures are found from anywhere."""

    def whole(link: re.Match[str]) -> str:
        kind = "raw" if link["picture"] else "blob"
        return f"{link['picture']}[{link['text']}]({repository}/{kind}/main/{link['file']})"

    return _LINK.sub(whole, text)


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, Any]:
    """Return the field readme, as scikit-build-core wants it."""
    text = Path("README.md").read_text(encoding="utf-8")
    return {"readme": {"content-type": "text/markdown", "text": with_addresses(text, project["urls"]["Repository"])}}
