"""Figures of a run: curves per layer, goodness histograms, first-layer features, diagnosis.

Pure functions from rows and arrays to PNG files, which appear by one rename. Colours are safe for
colour-blind readers: layers go from dark to light (viridis, without its palest end), views have the
blue, vermilion and grey of Okabe and Ito, and no distinction rests on colour alone.
"""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from fflax.training.metrics import Row

VIEWS = ("positive", "negative", "neutral")
_VIEW_COLORS = ("#0072B2", "#D55E00", "#777777")
_VIEW_STYLES: tuple[Any, ...] = ("-", "--", ":")
_MAX_IN_LEGEND = 8
_STYLE: dict[Any, Any] = {
  "font.size": 9,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "grid.color": "#dddddd",
  "grid.linewidth": 0.6,
  "axes.axisbelow": True,
  "legend.frameon": False,
}


def training_curves(
  rows: Sequence[Row], layer_names: Sequence[str], path: str | os.PathLike
) -> pathlib.Path:
  """Accuracy, goodness, gamma and loss of every layer over the epochs; empty panels are left out.

  Reads the rows of `metrics.jsonl`: `<split>/<layer>/accuracy`, `<split>/accuracy/<readout>`,
  `train/<layer>/goodness_pos`, `train/<layer>/goodness_neg`, `train/<layer>/gamma` (of layers that
  collaborate) and `train/<layer>/loss`.

  Raises:
    ValueError: the rows have none of these.
  """
  splits = sorted({key.split("/")[0] for row in rows for key in row if "accuracy" in key})
  panels = [(split, "accuracy") for split in splits]
  panels += [("train", what) for what in ("goodness", "gamma", "loss")]
  drawn = [p for p in panels if _draw_panel(Figure().subplots(), rows, layer_names, *p)]
  if not drawn:
    raise ValueError(f"{len(rows)} rows of metrics, but no accuracy, goodness or loss to draw")
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(8, 2.6 * len(drawn)), layout="constrained")
    axes = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
    for ax, panel in zip(axes, drawn, strict=True):
      _draw_panel(ax, rows, layer_names, *panel)
    axes[-1].set_xlabel("epoch")
    return _save(figure, path)


def goodness_histograms(
  goodness: np.ndarray,
  layer_names: Sequence[str],
  path: str | os.PathLike,
  views: Sequence[str] | None = None,
) -> pathlib.Path:
  """One histogram a layer: how far apart positive and negative views are.

  The outermost bins, at the 0.5 % and 99.5 % quantiles, hold all that lies beyond.

  Args:
    goodness: `[L, V, B]`.
    layer_names: L names.
    path: of the PNG file.
    views: V names; positive, negative, neutral if None ("plain" if there is only one).

  Raises:
    ValueError: the shape does not fit the names.
  """
  goodness = np.asarray(goodness, np.float64)
  if goodness.ndim != 3 or len(goodness) != len(layer_names):
    raise ValueError(
      f"goodness has shape {list(goodness.shape)}; expected [{len(layer_names)}, views, examples]"
    )
  num_views = goodness.shape[1]
  views = views or (VIEWS[:num_views] if num_views > 1 else ("plain",))
  if len(views) != num_views or num_views > len(_VIEW_COLORS):
    raise ValueError(f"goodness has {num_views} views; names are given for {len(views)}")
  columns = min(4, len(goodness))
  lines = math.ceil(len(goodness) / columns)
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(max(4.0, 2.7 * columns), 2.4 * lines + 0.4), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax in axes[len(goodness) :]:
      ax.remove()
    for ax, values, name in zip(axes, goodness, layer_names, strict=False):
      _draw_histogram(ax, values, views)
      ax.set_title(name + _separation(values), fontsize=9)
      ax.set_xlabel("goodness")
    for ax in axes[: len(goodness) : columns]:
      ax.set_ylabel("examples (%)")
    handles = [
      Line2D([], [], color=_VIEW_COLORS[i], linestyle=_VIEW_STYLES[i], label=f"{v} view")
      for i, v in enumerate(views)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=num_views)
    return _save(figure, path)


def first_layer_features(
  kernel: np.ndarray,
  image_shape: tuple[int, int, int],
  path: str | os.PathLike,
  max_features: int = 64,
) -> pathlib.Path:
  """The incoming weights of the units with the greatest weight norm, as images, greatest first.

  Three channels are shown as colours (grey is zero), one as a diverging map, and any other number
  by the mean over the channels. All images share one scale, which ends at the 99.5 % quantile.

  Args:
    kernel: dense `[D, units]` with `D >= H W C`: what a label-prepending method adds stands before
      the pixels, and is left out; or convolution `[h, w, C, units]`.
    image_shape: `(H, W, C)` of the data.
    path: of the PNG file.
    max_features: the most units shown.

  Raises:
    ValueError: the kernel does not read such images.
  """
  kernel = np.asarray(kernel, np.float64)
  pixels = math.prod(image_shape)
  if kernel.ndim == 2 and kernel.shape[0] >= pixels:
    images = kernel[kernel.shape[0] - pixels :].T.reshape(-1, *image_shape)
  elif kernel.ndim == 4 and kernel.shape[2] == image_shape[2]:
    images = np.moveaxis(kernel, -1, 0)
  else:
    raise ValueError(
      f"a kernel of shape {list(kernel.shape)} does not read images {list(image_shape)}"
    )
  total = len(images)
  norms = np.linalg.norm(images.reshape(total, -1), axis=1)
  images = images[np.argsort(-norms, kind="stable")[:max_features]]
  channels = images.shape[-1]
  if channels not in (1, 3):
    images = images.mean(axis=-1, keepdims=True)
  limit = float(np.quantile(np.abs(images), 0.995)) or 1.0

  columns = math.ceil(math.sqrt(len(images)))
  lines = math.ceil(len(images) / columns)
  with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
    width = 0.7 * columns + (0.2 if channels == 3 else 1.4)
    figure = Figure(figsize=(max(3.0, width), 0.7 * lines + 0.6), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for ax in axes.ravel():
      ax.axis("off")
    for ax, image in zip(axes.ravel(), images, strict=False):
      if channels == 3:
        ax.imshow(np.clip(0.5 + image / (2 * limit), 0, 1), interpolation="nearest")
      else:
        shown = ax.imshow(
          image[..., 0], cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
        )
    if channels != 3:
      label = "weight" if channels == 1 else f"weight, mean of {channels} channels"
      figure.colorbar(shown, ax=axes, label=label, shrink=0.6, extend="both")
    figure.suptitle(f"{len(images)} of {total} first-layer units, by weight norm", fontsize=9)
    return _save(figure, path)


def image_grid(
  images: np.ndarray,
  good: np.ndarray,
  values: np.ndarray,
  titles: Sequence[str],
  title: str,
  path: str | os.PathLike,
) -> pathlib.Path:
  """Images in rows, each with its value below; those that are not good have a frame.

  Args:
    images: `[rows, columns, H, W, C]` in [0, 1], of one or three channels (else their mean).
    good: `[rows, columns]` bool.
    values: `[rows, columns]`.
    titles: of the rows.
    title: of the figure.
    path: of the PNG file.

  Raises:
    ValueError: these are no images, or the shapes do not fit.
  """
  if images.ndim != 5:
    raise ValueError(f"images [rows, columns, H, W, C] are needed, not {list(images.shape)}")
  lines, columns = images.shape[:2]
  if good.shape != (lines, columns) or values.shape != good.shape or len(titles) != lines:
    raise ValueError(f"{lines} x {columns} images, but other numbers of values or titles")
  if images.shape[-1] not in (1, 3):
    images = images.mean(axis=-1, keepdims=True)
  height, width, channels = images.shape[2:]
  gap = max(2, height // 3)  # for the values
  # One picture of all: axes of their own would take seconds for a hundred images.
  canvas = np.ones((lines, height + gap, columns, width + 1, channels))
  canvas[:, :height, :, :width] = np.clip(images, 0, 1).transpose(0, 2, 1, 3, 4)
  canvas = canvas.reshape(lines * (height + gap), columns * (width + 1), channels)
  with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
    size = (max(4.0, 0.55 * columns + 0.8), 0.72 * lines + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    shown = np.repeat(canvas, 3, axis=-1) if channels == 1 else canvas
    ax.imshow(shown, interpolation="nearest")
    for i, j in np.ndindex(lines, columns):
      top, left = i * (height + gap) - 0.5, j * (width + 1) - 0.5
      below = (left + width / 2, top + height + 0.1 * gap)
      ax.text(*below, f"{values[i, j]:.2f}", fontsize=6, ha="center", va="top")
      if not good[i, j]:
        frame = Rectangle((left, top), width, height, fill=False, ec=_VIEW_COLORS[1], lw=2)
        ax.add_patch(frame)
    ax.set_yticks((height + gap) * np.arange(lines) + (height - 1) / 2, titles)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=9, wrap=True)
    return _save(figure, path)


def diagnosis(found: Mapping[str, Any], path: str | os.PathLike) -> pathlib.Path:
  """Accuracy, information and disagreement of the layers, side by side.

  Args:
    found: as `experiments.diagnosis.diagnose` returns it.
    path: of the PNG file.
  """
  rows, scored = found["layers"], found["scored_layers"]
  x, names = np.arange(len(rows)), [row["layer"] for row in rows]
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
    accuracies = [np.nan if row["accuracy"] is None else 100 * row["accuracy"] for row in rows]
    left.plot(x, accuracies, "o-", color=_VIEW_COLORS[0], label="layer")
    for i, (name, accuracy) in enumerate(found["readouts"].items()):
      style = ("-", "--", ":", "-.")[i % 4]
      left.axhline(100 * accuracy, color="black", ls=style, lw=1, label=f"readout {name}")
    if scored:
      best = 100 * found["oracle_accuracy"]
      left.axhline(best, color=_VIEW_COLORS[1], ls=":", label="any layer right")
    left.set_ylabel("test accuracy (%)")
    lines = {"scalar goodness, neighbours": [row["neighbour_bits"] for row in rows]}
    if "grid_probe" in rows[0]:
      lines["goodness on a grid, Fano"] = [row["grid_probe"]["fano"] for row in rows]
      lines["mean activities, Fano"] = [row["mean_probe"]["fano"] for row in rows]
    looks = zip(lines.items(), ("o-", "s--", "^:"), _VIEW_COLORS, strict=False)
    for (label, values), style, color in looks:
      middle.plot(x, values, style, color=color, label=label)
    middle.axhline(found["label_entropy_bits"], color="black", lw=0.8, label="H(Y)")
    middle.set_ylabel("information about the class (bits)")
    # A learned temperature stands beside its layer's name, in both panels that have one per layer.
    if "temperature" in rows[0]:
      names = [f"{row['layer']}, T {row['temperature']:.2f}" for row in rows]
    for ax in (left, middle):
      ax.set_xticks(x, names, rotation=45, ha="right")
      ax.legend(fontsize=7)
    right.grid(visible=False)
    if scored:
      matrix = 100 * np.array(found["disagreement"])
      shown = right.imshow(matrix, cmap="viridis", vmin=0)
      right.set_xticks(range(len(scored)), scored, rotation=45, ha="right")
      right.set_yticks(range(len(scored)), scored)
      mean = found["mean_disagreement"]
      title = "disagreement" if mean is None else f"disagreement, mean {100 * mean:.1f} %"
      right.set_title(title, fontsize=9)
      figure.colorbar(shown, ax=right, label="%")
    else:
      right.axis("off")
      right.text(0.5, 0.5, "layers give no class scores", ha="center", transform=right.transAxes)
    return _save(figure, path)


# --- parts ----------------------------------------------------------------------------------------


def _series(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
  """Epochs and values of the rows that have the metric."""
  there = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
  return [float(e) for e, _ in there if e is not None], [
    float(v) for _, v in there if v is not None
  ]


def _draw_panel(
  ax: Axes, rows: Sequence[Row], layer_names: Sequence[str], split: str, what: str
) -> bool:
  """Draws one panel of `training_curves`; returns whether there was anything to draw."""
  percent = 100.0 if what == "accuracy" else 1.0
  everything: list[float] = []

  def line(key: str, color: Any, style: str, marker: str, label: str | None) -> None:
    epochs, values = _series(rows, key)
    if values:
      values = [percent * v for v in values]
      mark: dict[str, Any] = {"marker": marker, "ms": 4, "mfc": color if style == "-" else "white"}
      few = mark if len(values) <= 30 else {}
      ax.plot(epochs, values, style, color=color, label=label, lw=1.4, **few)
      everything.extend(values)

  count = len(layer_names)
  colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, count))
  named = set(np.linspace(0, count - 1, min(count, _MAX_IN_LEGEND)).round().astype(int))
  for i, name in enumerate(layer_names):
    label = name if i in named else None
    if what == "goodness":
      line(f"train/{name}/goodness_pos", colors[i], "-", "o", label)
      line(f"train/{name}/goodness_neg", colors[i], "--", "o", None)
    else:
      line(f"{split}/{name}/{what}", colors[i], "-", "o", label)
  if what == "accuracy":
    head = f"{split}/accuracy/"
    readouts = sorted({key for row in rows for key in row if key.startswith(head)})
    for i, key in enumerate(readouts):
      style, marker = (("--", "s"), (":", "^"), ("-.", "D"))[i % 3]
      line(key, "black", style, marker, f"readout {key.removeprefix(head)}")

  units = {"accuracy": f"{split} accuracy (%)", "goodness": "mean goodness"}
  ax.set_ylabel(units.get(what, what))
  if what in ("goodness", "loss") and everything and 0 < 100 * min(everything) < max(everything):
    ax.set_yscale("log")
  handles, _ = ax.get_legend_handles_labels()
  if what == "goodness":
    handles += [
      Line2D([], [], color="#444444", linestyle=style, marker="o", ms=4, mfc=fill, label=view)
      for view, style, fill in zip(VIEWS[:2], _VIEW_STYLES, ("#444444", "white"), strict=False)
    ]
  ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
  return bool(everything)


def _draw_histogram(ax: Axes, values: np.ndarray, views: Sequence[str]) -> None:
  """The distribution of each view's goodness, `[V, B]`, in shared bins."""
  finite = values[np.isfinite(values)]
  if not finite.size:
    ax.text(0.5, 0.5, "no finite goodness", ha="center", transform=ax.transAxes)
    return
  low, high = np.quantile(finite, [0.005, 0.995])
  bins = np.linspace(low, high, 41) if high > low else np.array([low - 0.5, low + 0.5])
  for i in range(len(views)):
    own = values[i][np.isfinite(values[i])]
    heights, _ = np.histogram(np.clip(own, bins[0], bins[-1]), bins)
    color, share = _VIEW_COLORS[i], 100 * heights / max(1, own.size)
    ax.stairs(share, bins, fill=True, color=color, alpha=0.25)
    ax.stairs(share, bins, color=color, linestyle=_VIEW_STYLES[i], linewidth=1.3)


def _separation(values: np.ndarray) -> str:
  """The probability that a positive view has more goodness than a negative one, in words."""
  if len(values) < 2 or not np.isfinite(values[:2]).all():
    return ""
  positive, negative = values[0], np.sort(values[1])
  below = np.searchsorted(negative, positive, "left").mean()
  up_to = np.searchsorted(negative, positive, "right").mean()
  return f": P(pos > neg) = {(below + up_to) / (2 * len(negative)):.2f}"


def _save(figure: Figure, path: str | os.PathLike) -> pathlib.Path:
  """Writes the figure as PNG, atomically."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = path.with_name(f".{path.name}.unfinished")
  figure.savefig(unfinished, format="png", dpi=150)
  unfinished.replace(path)
  return path
