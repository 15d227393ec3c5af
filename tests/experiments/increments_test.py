"""The study of learning class by class in its shortest form, on four of the digits."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from experiments import cli, config
from experiments.studies import arms
from experiments.studies import increments as study
from fflax.data import increments, sources
from fflax.data.dataset import Split
from fflax.training.loop import Diverged, Interrupted

GROUPS = ((3, 0), (1, 2))


@functools.cache
def digits():
  whole = sources.load("digits")
  four = {n: increments.only(getattr(whole, n), range(4)) for n in ("train", "test")}
  return whole._replace(**four, num_classes=4)


@functools.cache
def chosen(**changes):
  base = config.load_preset("hff_digits")
  return dataclasses.replace(
    base,
    epochs=6,
    networks={"mlp": {"sizes": (24,)}},
    readouts=("score_sum", "last_layer"),
    optimizer=dataclasses.replace(base.optimizer, learning_rate=0.01),
    data=dataclasses.replace(base.data, **{"batch_size": 48, **changes}),
  )


def test_accuracies_by_hand():
  """Class 0 has the greatest score everywhere, and is no answer until it has been seen."""
  label = np.array([3, 0, 1, 2, 2])
  scores = np.array([
    [9, 0, 0, 3], [9, 0, 0, 3], [9, 8, 1, 2], [9, 1, 0, 2], [9, 0, 7, 2],
  ], np.float32)  # fmt: skip
  one = study.task_accuracies(scores, label, (1, 2), ((1, 2), (3, 0)))
  assert one == pytest.approx([200 / 3, 0])
  assert study.task_accuracies(scores, label, (1, 2, 3, 0), ((1, 2), (3, 0))) == [0, 50]


def test_a_task_is_learned_and_the_first_one_forgotten(tmp_path):
  """The means answer too; what is done is read, not run again."""
  arm = study.Arm("p", chosen(), 2, loss="seen")
  found, drift = outcome = study.remembered(arm, digits(), GROUPS, tmp_path)
  a = found["score_sum"]
  assert a.shape == (2, 2) and a[0, 1] == 0  # classes to come are no answers
  assert a[0, 0] > 80 and a[1, 1] > 80
  assert a[1, 0] < a[0, 0]
  assert 0 < drift < 2
  by_means = [f"{what} means, {how}" for what in ("stored", "true") for how in ("sum", "last")]
  assert list(found) == ["score_sum", "last_layer", *by_means]
  again = study.remembered(arm, None, GROUPS, tmp_path)
  assert all(np.array_equal(found[k], again[0][k]) for k in found) and again[1] == drift
  rows = study.rows_of(arm, [outcome], "strict", seeds=[0], command="c")
  assert {r["metric"] for r in rows} == set(study.METRICS)
  first = rows[0]
  assert first["values"] == [pytest.approx(a[1].mean(), rel=1e-5)]
  assert first["after_each_task"] == pytest.approx([a[0, 0], a[1].mean()], abs=1e-3)
  cells = f"| p, loss over seen, 0 exemplars | score_sum | {a[1].mean():.1f} +- 0.0 |"
  assert cells in study.table(rows, "T", "note")
  study.draw(rows, "T", tmp_path / "figure.png")
  assert (tmp_path / "figure.png").stat().st_size > 1000


def test_a_task_sees_its_classes_and_the_exemplars():
  arm = study.Arm("p", chosen(), 2, loss="seen", buffer=3)
  kept = increments.exemplars(increments.only(digits().train, (3, 0)), 3, seed=0)
  experiment = study.task_experiment(arm, digits(), GROUPS, kept)
  labels = np.bincount(experiment.labels, minlength=4)
  new = np.bincount(digits().train.label)[[1, 2]]
  assert labels[[1, 2]].tolist() == new.tolist()
  assert labels[0] == labels[3] == new.sum() // 2
  images, old = np.asarray(experiment.images), np.isin(experiment.labels, (0, 3))
  shown = {x.tobytes() for x in images[old]}
  assert shown == {x.tobytes() for x in kept.image}
  method = experiment.config.methods["hyperspherical"]
  assert method.loss_classes == (0, 1, 2, 3)
  current = study.task_experiment(arm._replace(loss="current", buffer=0), digits(), GROUPS, kept)
  assert current.config.methods["hyperspherical"].loss_classes == (1, 2)


def test_a_random_trunk_never_trains(monkeypatch):
  """With shots, classes after the first task are stored by the mean of few images."""
  monkeypatch.setattr(study, "train", None)
  found, drift = study.run_arm(study.Arm("p", chosen(), 2, trunk="random"), digits(), GROUPS)
  assert set(found) == {f"{w} means, {h}" for w in ("stored", "true") for h in ("sum", "last")}
  np.testing.assert_array_equal(found["stored means, sum"], found["true means, sum"])
  assert drift == pytest.approx(0, abs=1e-5)
  assert found["true means, sum"][-1].mean() > 60
  asked = []

  def exemplars(split, number, seed):
    asked.append((np.unique(split.label).tolist(), number))
    rows = [np.flatnonzero(split.label == c)[0] for c in (1, 2)]
    return Split(split.image[rows], split.label[rows])

  monkeypatch.setattr(study.increments, "exemplars", exemplars)
  arm = study.Arm("p", chosen(), 2, trunk="random", shots=1)
  assert arm.label() == "p, trunk random, new classes by 1 images"
  few, _ = study.run_arm(arm, digits(), GROUPS)
  assert asked == [([1, 2], 1)]
  assert set(few) == {"stored means, sum", "stored means, last"}
  one, every = few["stored means, sum"], found["stored means, sum"]
  assert one[0].tolist() == every[0].tolist() and one[1].mean() < every[1].mean()


def test_optimisers_begin_anew_and_parameters_stay():
  experiment = study.task_experiment(
    study.Arm("p", chosen(), 2), digits(), GROUPS[:1], increments.only(digits().train, ())
  )
  state = experiment.init()
  fresh = [s.opt_state for s in state.layers], [r.opt_state for r in state.readouts]
  moved, _ = jax.jit(experiment.trainer.step)(state, experiment.example(8))
  begun = study.begin_task(moved, *fresh, seed=0, task=1)
  same = lambda a, b: all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))  # noqa: E731
  assert int(begun.step) == 0
  assert not np.array_equal(jax.random.key_data(begun.key), jax.random.key_data(state.key))
  for new, trained, first in zip(begun.layers, moved.layers, state.layers, strict=True):
    assert same(new.params, trained.params) and not same(new.params, first.params)
    assert same(new.opt_state, first.opt_state) and not same(new.opt_state, trained.opt_state)


def test_a_divergence_is_a_result_and_a_signal_an_end(tmp_path, monkeypatch):
  def stop_with(error):
    def fail(*_, **__):
      raise error

    monkeypatch.setattr(study, "train", fail)

  arm = study.Arm("p", chosen(), 2)
  stop_with(Interrupted("SIGTERM", 3, None))
  with pytest.raises(cli.Stopped, match="^stopped by SIGTERM.*are kept$"):
    study.remembered(arm, digits(), GROUPS, tmp_path)
  stop_with(Diverged("the loss", 3, "layer1", None))
  assert study.remembered(arm, digits(), GROUPS, tmp_path) is None
  monkeypatch.setattr(study, "train", None)
  assert study.remembered(arm, None, GROUPS, tmp_path) is None  # as it was found
  good = study.Outcome({"score_sum": np.array([[90.0, 0.0], [50.0, 80.0]])}, 0.5)
  some = study.rows_of(arm, [None, good], "strict", seeds=[3, 4], command="c")
  assert some[0]["seeds"] == [4] and some[0]["diverged"] == [3]
  none = study.rows_of(arm._replace(preset="q"), [None, None], "strict", seeds=[3, 4], command="c")
  assert [(r["metric"], r["mean"]) for r in none] == [(m, None) for m in study.METRICS]
  text = study.table([*some, *none], "T", "note")
  assert "| score_sum | 65.0 +- 0.0, 1 diverged |" in text
  assert "| score_sum | 2 diverged | 2 diverged | 2 diverged |  | 0 |" in text
  study.draw(none, "T", tmp_path / "figure.png")


def test_the_arms_of_a_study():
  both = {"p": chosen(), "q": chosen()}
  some = arms.make_arms(both, 2, ["seen", "current"], ["0", "5"], controls=False)
  assert [a.preset for a in some] == ["p", "q"] * 3
  assert [(a.loss, a.buffer) for a in some[::2]] == [("seen", 0), ("seen", 5), ("current", 0)]
  assert {a.trunk for a in some} == {"trained"}
  rest = arms.make_arms(both, 2, ["current"], ["0"], ["1", "5"])[2:]
  assert [(a.preset, *a[2:]) for a in rest[::2]] == [
    ("p", 1, "all", 0, "trained", 0),
    ("p", 2, "current", 0, "frozen", 0),
    ("p", 2, "current", 0, "frozen", 1),
    ("p", 2, "current", 0, "frozen", 5),
    ("p", 2, "current", 0, "random", 0),
  ]
  for losses, buffers, shots, sentence in (
    (["current"], ["5"], [], "^--losses=current goes without exemplars"),
    (["seen", "current"], ["5"], [], "^--losses=current goes without exemplars"),
    (["current", "all"], ["0", "5"], [], "give --losses 'seen' too"),
    (["other"], ["0"], [], "^--losses takes"),
    (["seen"], ["-1"], [], "^--buffers takes whole numbers, not -1$"),
    (["seen"], ["0"], ["few"], "^--shots takes whole numbers"),
    (["seen"], ["0"], ["0"], "^--shots takes numbers from 1 on$"),
  ):
    with pytest.raises(ValueError, match=sentence):
      arms.make_arms(both, 2, losses, buffers, shots)


def test_presets_as_they_are_run():
  """One data set serves all arms, so presets that name another one are refused."""
  plain = chosen()
  control = dataclasses.replace(chosen(batch_size=7, validation=3), method="backprop")
  found = arms.runs(
    {"h": plain, "b": control}, epochs=3, batch_size=9, prototypes=["ema", "learned"]
  )
  assert list(found) == ["h (ema)", "h (learned)", "b"]
  assert found["h (ema)"].methods["hyperspherical"].prototypes == "ema"
  assert {(c.epochs, c.data.batch_size, c.data.validation) for c in found.values()} == {(3, 9, 0)}
  assert arms.runs({"h": plain, "b": control}, epochs=3)["b"].data.batch_size == 7
  other = chosen(name="mnist", normalization="half")
  with pytest.raises(ValueError, match="'m' differs from 'h' in data.name, data.normalization$"):
    arms.runs({"h": plain, "m": other}, epochs=3)
  with pytest.raises(ValueError, match="^--prototypes are of hyperspherical presets"):
    arms.runs({"b": control}, epochs=3, prototypes=["ema"])


def test_arms_that_would_mislead_are_refused():
  ff = dataclasses.replace(chosen(), method="forward_forward")
  head = dataclasses.replace(chosen(), readouts=("score_sum", "softmax_head"))
  study.check(study.Arm("p", head, 2, "all"))
  for arm, sentence in (
    (study.Arm("p", ff, 2), "no loss over some of the classes"),
    (study.Arm("p", head, 2), "readout 'softmax_head' of 'p' is trained over all classes"),
    (study.Arm("p", chosen(), 2, shots=1), "not trained"),
    (study.Arm("p", chosen(), 2, "current", 5), "use loss 'seen'"),
    (study.Arm("p", chosen(normalization="dataset"), 2), "would know the classes to come"),
    (study.Arm("p", chosen(validation=10), 2), "validation"),
  ):
    with pytest.raises(ValueError, match=sentence):
      study.check(arm)
