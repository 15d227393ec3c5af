"""The study of robustness in its shortest form, on the digits: two short runs, a few attacks."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from experiments import batches, config
from experiments.assembly import build, check
from experiments.controls import matched_backprop
from experiments.studies import attacks
from fflax.data import synthetic
from fflax.training.loop import train


@functools.cache
def presets():
  base = config.load_preset("hff_digits")
  base = dataclasses.replace(
    base,
    epochs=2,
    networks={"mlp": {"sizes": (24,)}},
    optimizer=dataclasses.replace(base.optimizer, learning_rate=0.02),
  )
  return {"hff": base, "control": matched_backprop(base)}


def test_in_batches_is_the_whole():
  """Padding rows are computed and thrown away, wherever the last batch ends."""
  x, y = np.arange(21.0).reshape(7, 3), np.arange(7)
  for size in (1, 3, 7, 100):
    got = batches.in_batches(jax.jit(lambda a, b: {"sum": a.sum(1) + b}), size, x, y)
    np.testing.assert_array_equal(got["sum"], x.sum(1) + y)


def trained(chosen, folder):
  """Without what a run writes into its folder."""
  e = build(chosen)
  return e, train(e.trainer, e.feed, e.init(), e.images, e.labels, e.plan)


def test_the_study_on_the_digits(tmp_path, monkeypatch):
  monkeypatch.setattr(attacks, "trained", trained)
  tried = attacks.Attacks((0.2,), (0.1, 0.9), steps=3, restarts=1, directions=2)
  values, localities = attacks.measure(presets(), ("score_sum",), [0], tried, 60, tmp_path)
  assert localities == {"hff": "strict", "control": "global"}
  names = {(p, r) for p, r, *_ in values}
  assert names == {("hff", "score_sum"), ("control", "score_sum")}
  for preset, readout in names:
    own = {(a, s): v for (p, r, a, s), (v,) in values.items() if (p, r) == (preset, readout)}
    clean = own["pgd", 0.0]
    assert clean == own["fgsm", 0.0] == own["gaussian", 0.0] > 40  # learned something
    assert own["pgd", 0.9] <= own["pgd", 0.1] < clean
    assert own["pgd", 0.9] < 5  # large attacks leave nothing
    assert own["pgd, first 60", 0.1] <= own["gradient-free", 0.1]
    other = "control" if preset == "hff" else "hff"
    assert own["pgd", 0.1] <= own[f"transfer from {other}", 0.1] <= 100
  rows = attacks.rows_of(values, presets(), localities, seeds=[0], command="c")
  assert {r["metric"] for r in rows} == {"test_accuracy_percent"}
  text = attacks.table(rows, "T", "A note.")
  assert "| test accuracy % | readout | clean | 0.1 | 0.9 | seeds |" in text
  clean = values["hff", "score_sum", "gaussian", 0.0][0]
  noisy = values["hff", "score_sum", "gaussian", 0.2][0]
  assert f"| hff | score_sum | {clean:.2f} +- 0.00 | {noisy:.2f} +- 0.00 | 1 |" in text
  attacks.draw(rows, "T", tmp_path / "figure.png")
  assert (tmp_path / "figure.png").stat().st_size > 1000


def test_the_control_differs_in_method_and_readout_only():
  found = presets()["control"]
  old, new = (config.as_dict(c) for c in presets().values())
  names = {n for n in config.differences(old, new) if not n.startswith("methods.backprop.")}
  assert names == {"method", "readouts"}
  method = found.methods["backprop"]
  assert (method.head, method.scale, method.normalization) == ("cosine", 10.0, "rms")
  conv = matched_backprop(config.load_preset("hff_cnn_digits"), "linear").methods["backprop"]
  assert (conv.head, conv.normalization, conv.normalize_input) == ("linear", "rms", False)
  assert config.load_preset("bp_matched:hff_digits") == matched_backprop(
    config.load_preset("hff_digits")
  )


@pytest.mark.parametrize(
  ("preset", "normalization"),
  [("dtg_mnist", "channel_layer"), ("local_ce_digits", "channel_layer"), ("ff_digits", "rms")],
)
def test_the_control_normalises_as_the_method(preset, normalization):
  chosen = config.load_preset(f"bp_matched:{preset}")
  check(chosen)
  found = chosen.methods["backprop"]
  own = config.load_preset(preset)
  assert (found.normalization, found.eps) == (normalization, own.methods[own.method].eps)
  assert found.normalize_input == (normalization == "rms")


def test_presets_must_share_readouts_and_test_images(monkeypatch):
  """Another set with the same labels would be scored against images that it does not have."""
  attacks.check_presets(presets(), ["score_sum", "last_layer"])
  for readouts, sentence in (
    (["score_sum", "scoresum"], "^unknown readout 'scoresum'"),
    (["score_sum", "softmax_head"], "^no preset has the readout 'softmax_head'$"),
    (["last_layer"], "^preset 'control' has none of the readouts last_layer$"),
  ):
    with pytest.raises(ValueError, match=sentence):
      attacks.check_presets(presets(), readouts)

  def other(chosen):
    e = build(chosen)
    t = e.dataset.test
    backprop = chosen.method == "backprop"
    test = t._replace(image=t.image[::-1]) if backprop else t
    return e._replace(dataset=e.dataset._replace(test=test))

  monkeypatch.setattr(attacks, "build", other)
  with pytest.raises(ValueError, match="^the presets of this study must share their test split$"):
    attacks.check_presets(presets(), ["score_sum"])


def test_unmatched_clean_accuracies_are_told():
  def row(preset, readout, mean, strength=0.0):
    values = {"preset": preset, "readout": readout, "mean": mean, "strength": strength}
    return {**values, "attack": "pgd"}

  rows = [row("a", "score_sum", 97.5), row("b", "score_sum", 97.0), row("b", "score_sum", 9, 0.1)]
  assert attacks.mismatch(rows) == "" == attacks.mismatch(rows[:1])
  text = attacks.mismatch([*rows, row("a", "last_layer", 96.25)])
  assert "by up to 0.75 points, b (score_sum) 97.00 % against a (last_layer) 96.25 %" in text


def test_features_without_pixels_are_refused():
  changes = {"name": "synthetic", "num_classes": 3}
  base = presets()["hff"]
  experiment = build(
    dataclasses.replace(base, data=dataclasses.replace(base.data, **changes)),
    synthetic.load(num_classes=3, num_train=200, num_test=10),
  )
  with pytest.raises(ValueError, match="data set 'synthetic' has none"):
    attacks.check(experiment)


def test_an_unknown_preset_is_one_sentence():
  with pytest.raises(ValueError, match="^there is no preset 'nothing' in experiments/configs$"):
    config.load_preset("nothing")


def test_presets_of_files():
  assert config.preset_name("experiments/configs/ff_digits.py") == "ff_digits"
  assert config.preset_name("a/b/bp_matched.py:hff_mnist") == "bp_matched:hff_mnist"
