"""Draw losses.svg, the loss curves in guide/training.md, from what training logged in losses/.

python docs/pictures/draw_losses.py
"""

import csv
from pathlib import Path

import matplotlib as mpl
from dark import with_dark

mpl.use("Agg")
import matplotlib.pyplot as plt

_HERE = Path(__file__).parent
_RUNS = (
    ("fff", "FFF 16x5", "#1f77b4"),
    ("dense", "dense 1020", "#d62728"),
)


def main() -> None:
    """Draw."""
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "losses", "svg.fonttype": "none"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, label, colour in _RUNS:
        with open(_HERE / "losses" / f"{name}.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        shape = {"color": colour, "linewidth": 1}
        held_out = [row for row in rows if row["held_out_loss"]]
        steps = [int(row["step"]) for row in held_out]
        training = [row for row in rows if int(row["step"]) >= 500]
        x, y = ([float(row[key]) for row in training] for key in ("step", "loss"))
        left.plot(x, y, **{**shape, "alpha": 0.35})
        left.plot(
            steps, [float(row["held_out_loss"]) for row in held_out], label=label, **{**shape, "linewidth": 1.8}
        )
        right.plot(steps, [100 * float(row["held_out_accuracy"]) for row in held_out], label=label, **shape)
    left.set(title="loss: held out, and in training (pale)", xlabel="step", ylim=(1.9, 6))
    right.set(title="held-out masked tokens that are right, %", xlabel="step", ylim=(0, 60))
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, 12200)
    file = _HERE / "losses.svg"
    figure.savefig(file, metadata={"Date": None})
    file.write_text(with_dark(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
