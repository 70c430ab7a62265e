"""Build the documentation site: ``pip install '.[docs]' && python docs/build_site.py FOLDER [--demo]``.

Pages of docs/ and what docs/site/hooks.py adds to them, by MkDocs, where a warning is an error; with --demo the page
that has the model in it; and a check of all links. Reads sources alone, but for the demo, which compiles: see
docs/demo/build.py for what that takes. Needs no network, and what it writes needs none either: open FOLDER/index.html
(the demo wants a server).
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(words: list[str]) -> int:
    """Build the site in the folder that is named, which is emptied first; return 0 where all is well."""
    with_demo = "--demo" in words
    names = [word for word in words if word != "--demo"]
    if len(names) != 1 or names[0].startswith("-"):
        print(__doc__)
        return 2
    folder = Path(names[0]).resolve()
    if folder.exists() and any(folder.iterdir()) and not (folder / "search/search_index.json").is_file():
        print(f"{folder} has files that are not of this site: name an empty folder", file=sys.stderr)
        return 2
    steps = [
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "-f",
            "docs/site/mkdocs.yml",
            "--clean",
            "--strict",
            "-d",
            str(folder),
        ]
    ]
    if with_demo:
        steps.append([sys.executable, "docs/demo/build.py", str(folder / "demo")])
    steps.append([sys.executable, "docs/site/check_links.py", str(folder)])
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "CMM_SITE_DEMO": str(int(with_demo))}
    for step in steps:
        # MkDocs says what it does, which is shown where it failed (with --quiet it would not count its warnings).
        done = subprocess.run(step, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout + done.stderr, end="", file=sys.stderr)
            return done.returncode
    print(done.stdout, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
