"""Links in a model's folder, which nobody vouches for: they are followed within the folder and no further.

The one exception is a hub cache, as huggingface_hub lays it out: a model is ``snapshots/REVISION``, a folder of links
into ``blobs`` beside ``snapshots``.
"""

import os
from pathlib import Path

from cmm.bert.errors import CheckpointError


def followed(file: Path, *, anywhere: bool = False) -> Path:
    """Return where the links of a file in a model's folder lead, which should be in that folder or its hub cache.

    The folder itself may be a link: it was named by the user. There need not be such a file.

    Parameters
    ----------
    file : Path
    anywhere : bool, optional
        They may lead elsewhere, for the user has named the file itself.

    Raises
    ------
    CheckpointError
        They lead elsewhere.
    """
    if not os.path.lexists(file):
        return file
    folder, real = Path(os.path.realpath(file.parent)), Path(os.path.realpath(file))
    if anywhere or real.is_relative_to(folder):
        return real
    if folder.parent.name == "snapshots" and real.parent == folder.parents[1] / "blobs":
        return real
    raise CheckpointError(
        file, "is a link out of its folder; only links within it, or within a hub cache, are followed"
    )
