"""Quality against speed, one point per scorer."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fmad_dist.comparison.table import Row


def draw(rows: Sequence["Row"]) -> bytes:
    """PNG: mean image AUROC and AUPRO over images/s of one process; a scorer without a measured speed is left out."""
    from matplotlib.figure import Figure

    timed = [row for row in rows if not math.isnan(row.images_per_s)]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axis, (key, name) in zip(
        figure.subplots(1, 2), (("image_auroc", "mean image AUROC"), ("aupro", "mean AUPRO")), strict=True
    ):
        for number, row in enumerate(timed):
            value = getattr(row.results.mean.metrics, key)
            axis.scatter(row.images_per_s, value, s=50, marker="osD^vP*Xd<>h"[number % 12], label=row.title)
        axis.set(xscale="log" if timed else "linear", xlabel="images/s, scoring alone, one process", ylabel=name)
        if timed:
            _label_speeds(axis, [row.images_per_s for row in timed])
        axis.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _label_speeds(axis: "Axes", speeds: Sequence[float]) -> None:
    """Plain numbers on a logarithmic axis, which has room for several of 1, 2, 5, 10, ... or of 1, 10, 100, ..."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xlim(min(speeds) / 2, 2 * max(speeds))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(speeds) < 100 * min(speeds) else (1,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
