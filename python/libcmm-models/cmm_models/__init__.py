"""Two small trained models for ``cmm.bert.trained()``: one with fast feedforward layers, and its dense twin.

They are folders in the layout of ``cmm export``; MODEL_CARD.md beside this file says what they are, what they were
trained on, and how well they do. Nothing else is here, and nothing is imported.
"""

from pathlib import Path

#: Their folders by name.
FOLDERS = {name: Path(__file__).parent / name for name in ("fff", "dense")}
