"""Programs of several processes, a rank each, that meet by gloo."""

import subprocess
import sys
from pathlib import Path

SUPPORT = Path(__file__).parent
LAST = "as it should be"
"""The last line of a rank that has found no fault."""


def run_ranks(program: str, ranks: int, folder: Path) -> None:
    """Run a program of this folder with a rank, the number of ranks, and the file by which they meet.

    A process that waits for ever is a failure.
    """
    started = [
        subprocess.Popen(
            [sys.executable, SUPPORT / program, str(rank), str(ranks), str(folder / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    for process, words in zip(started, said, strict=True):
        assert (process.returncode, words.splitlines()[-1:]) == (0, [LAST]), "".join(said)
