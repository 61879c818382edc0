"""Draw the training curves of a stage from its `metrics.jsonl` as one small picture."""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PICTURE_BYTES = 20_000
"""Prefect keeps reports in its database and loads them completely, so pictures must be small."""
PANELS = 6
POINTS = 200
COLOURS = 16
RESOLUTIONS = (80, 64, 48, 36)  # dots per inch; the first one that gives a small enough picture is used

FIRST = ("loss", "score", "reward", "accuracy", "kl", "length")
"""Metrics whose name contains one of these words are drawn first, in this order."""
LAST = ("grad_norm", "learning_rate", "logps", "kl_coef")

Curve = list[tuple[float, float]]


def draw_curves(history: Path) -> str:
    """Draw the most important metrics by step as a `data:` URI of a PNG under 20 kB. Empty if there are none.

    Args:
        history: the stage's `metrics.jsonl`, one line per optimizer step or report.
    """
    curves = read_curves(history)
    chosen = sorted((name for name in curves if len(curves[name]) > 1), key=_rank)[:PANELS]
    if not chosen:
        return ""
    return _uri(_draw({name: curves[name] for name in chosen}))


def read_curves(history: Path) -> dict[str, Curve]:
    """Read the steps and values of every metric. Non-finite values are left out."""
    curves: dict[str, Curve] = {}
    for line in history.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(name, []).append((entry["step"], value))
    return curves


def _rank(name: str) -> tuple[int, str]:
    if any(word in name for word in LAST):
        return len(FIRST) + 1, name
    return next((place for place, word in enumerate(FIRST) if word in name), len(FIRST)), name


def downsampled(curve: Curve, points: int = POINTS) -> Curve:
    """Reduce a curve to at most `points` points, each the mean of a group, so that spikes stay visible."""
    size = -(-len(curve) // points)
    groups = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(_mean([step for step, _ in group]), _mean([value for _, value in group])) for group in groups]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def draw_reliability(calibration: Path) -> str:
    """Draw accuracy against confidence as a `data:` URI of a small PNG. The area of a point shows its number of pairs.

    Args:
        calibration: the reward model's `calibration.json`.
    """
    bins = [bin_ for bin_ in json.loads(calibration.read_text(encoding="utf-8"))["bins"] if bin_["pairs"]]
    figure, canvas = _canvas(3.6, 3.0)
    axis = figure.add_subplot()
    axis.plot([0.5, 1], [0.5, 1], color="0.6", linewidth=1)
    largest = max(bin_["pairs"] for bin_ in bins)
    sizes = [10 + 90 * bin_["pairs"] / largest for bin_ in bins]
    axis.scatter([bin_["confidence"] for bin_ in bins], [bin_["accuracy"] for bin_ in bins], s=sizes)
    axis.set(xlim=(0.5, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="share ordered correctly")
    axis.grid(alpha=0.3)
    return _uri(_small_png(figure, canvas))


def _draw(curves: Mapping[str, Curve]) -> bytes:
    from matplotlib.ticker import MaxNLocator

    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure, canvas = _canvas(3 * columns, 1.8 * rows)
    for place, (name, curve) in enumerate(curves.items(), start=1):
        axis = figure.add_subplot(rows, columns, place)
        axis.plot(*zip(*downsampled(curve), strict=True), linewidth=1.2)
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.tick_params(labelsize=7)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))  # steps
        axis.grid(alpha=0.3)
    return _small_png(figure, canvas)


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    """Create a figure of this size in inches without pyplot, which would keep it in memory and look for a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, FigureCanvasAgg(figure)


def _small_png(figure: Any, canvas: Any) -> bytes:
    import numpy as np
    from PIL import Image

    for resolution in RESOLUTIONS:
        figure.set_dpi(resolution)
        canvas.draw()
        picture = io.BytesIO()
        Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(COLOURS).save(picture, "png", optimize=True)
        if picture.tell() < PICTURE_BYTES * 3 // 4:  # base64 makes four bytes of three
            break
    return picture.getvalue()


def _uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()
