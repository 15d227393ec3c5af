"""Axes: what they may be, and the points that they make."""

import pytest

from experiments import config
from experiments.configs import ff_digits
from experiments.sweep_axes import Range, grid, label, make_axes, preset_axes

BASE = config.load_preset("ff_digits")


def test_the_preset_gives_axes_and_the_command_line_replaces_and_extends_them():
  preset = preset_axes(f"{ff_digits.__file__}:ignored")
  assert preset == ff_digits.sweep()
  given = ["optimizer.learning_rate=0.01,3", "mlp.sizes=(64,64),(8,)", "data.shuffle=true,False",
           "forward_forward.theta=log:1e-1..10", "epochs=lin:2..9"]  # fmt: skip
  assert make_axes(BASE, preset, given) == {
    "seed": tuple(range(8)),
    "optimizer.learning_rate": (0.01, 3.0),
    "mlp.sizes": ((64, 64), (8,)),
    "data.shuffle": (True, False),
    "forward_forward.theta": Range(0.1, 10, log=True, whole=False),
    "epochs": Range(2, 9, log=False, whole=True),
  }
  assert preset_axes(config.__file__) == {}


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ([], "has no sweep"),
    (["seed"], "written --axis=NAME=VALUE"),
    (["optimiser.rate=1"], "no such field"),
    (["optimizer=adam"], "is a group of fields"),
    (["seed=a"], "type int, not 'a'"),
    (["seed=1.5"], "type int"),
    (["seed=1,1"], "different values"),
    (["mlp.sizes=64,64"], "type list"),
    (["mlp.sizes=(64"], "takes tuples"),
    (["method=log:1..2"], "a range is written"),
    (["forward_forward.theta=log:0..1"], "a range rises"),
    (["forward_forward.theta=lin:1..0"], "a range rises"),
    (["forward_forward.theta=lin:1"], "a range is written"),
    (["forward_forward.theta=lin:0..nan"], "a range rises"),
  ],
)
def test_bad_axes_are_one_sentence(given, words):
  with pytest.raises(ValueError, match=f"^[^\n]*{words}[^\n]*$"):
    make_axes(BASE, {}, given)


def test_the_points_are_the_product_and_each_is_the_run_of_its_settings():
  axes = {"seed": (0, 1), "forward_forward.theta": (1.0, 2.0), "network": ("mlp",)}
  points, refused = grid(BASE, axes)
  assert len(points) == len({p.key for p in points}) == 4
  assert refused == []
  last = points[-1]
  assert last.settings == {"seed": 1, "forward_forward.theta": 2.0, "network": "mlp"}
  assert (last.config.seed, last.config.methods["forward_forward"].theta) == (1, 2.0)
  assert label(last.settings) == "seed=1, forward_forward.theta=2, network=mlp"
  # A run is the same whatever the axes that lead to it.
  assert grid(BASE, {"seed": (1,), "forward_forward.theta": (2.0,)})[0][0].key == last.key


def test_impossible_points_are_told_and_equal_runs_are_made_once():
  axes = {"method": ("forward_forward", "backprop"), "schedule": ("simultaneous", "greedy"),
          "forward_forward.theta": (1.0, 2.0)}  # fmt: skip
  points, refused = grid(BASE, axes)
  kinds = [(p.config.method, p.config.schedule) for p in points]
  assert kinds.count(("forward_forward", "greedy")) == 2
  assert kinds.count(("backprop", "simultaneous")) == 1  # it reads no threshold
  assert len(points) == 5
  assert [(s["method"], s["schedule"]) for s, _ in refused] == [("backprop", "greedy")] * 2
  assert all("global" in sentence for _, sentence in refused)


@pytest.mark.parametrize(
  ("axes", "words"),
  [
    ({"optimizer.learning_rate": (-1.0,)}, "no point of this sweep is possible: learning_rate"),
    ({"optimizer.learning_rate": Range(1e-3, 1, True, False)}, "is a range"),
    ({"seed": (0, 1), "hyperspherical.margin": (0.0, 0.1)}, "margin' changes nothing"),
  ],
)
def test_sweeps_that_make_no_sense_are_refused(axes, words):
  with pytest.raises(ValueError, match=f"^[^\n]*{words}[^\n]*$"):
    grid(BASE, axes)
