"""Seeds under one `vmap` are the runs of these seeds alone."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import config
from experiments.assembly import build
from experiments.seed_runs import train_seeds
from experiments.sweep_axes import with_values
from fflax.training.chunk import make_chunk

BASE = with_values(
  config.load_preset("hff_digits"), {"mlp.sizes": (12,), "epochs": 2, "readouts": ("score_sum",)}
)


def test_every_seed_is_its_own_run():
  found = train_seeds(BASE, (5, 3))
  own = build(dataclasses.replace(BASE, seed=3))
  example, steps = own.example(), own.plan.num_steps
  alone = jax.jit(lambda key: own.trainer.init(key, example))(jax.random.key(3))
  starts = jax.device_get((found.fresh.layers, alone.layers))
  for got, want in zip(*map(jax.tree.leaves, starts), strict=True):
    np.testing.assert_allclose(got[1], want, rtol=1e-6)
  trained, _ = make_chunk(own.trainer, own.feed, steps)(alone, own.images, own.labels, steps)
  layers = jax.device_get([state.layers for state in (found.states, trained, found.fresh)])
  moved = 0.0
  for got, want, before in zip(*map(jax.tree.leaves, layers), strict=True):
    np.testing.assert_allclose(got[1], want, rtol=1e-3, atol=1e-4)
    moved = max(moved, float(np.abs(want - before[1]).max()))
  assert moved > 0.01
  right = float(own.evaluator("test", own.dataset.test)(trained)["test/accuracy/score_sum"])
  errors = found.error_percent()
  # Sums run in another order under vmap: an answer of 360 may differ.
  assert errors.shape == (2,) and errors[1] == pytest.approx(100 * (1 - right), abs=110 / 360)


def test_seeds_with_examples_of_their_own_are_refused():
  for changes in ({"data.validation": 100}, {"data.name": "synthetic"}):
    with pytest.raises(ValueError, match="examples of their own"):
      train_seeds(with_values(BASE, changes), (0, 1))
  with pytest.raises(ValueError, match="on one device: leave mesh at 1"):
    train_seeds(with_values(BASE, {"mesh.layer": 2}), (0, 1))


def test_a_notebook_that_imports_it_keeps_its_own_way_of_showing_figures():
  """What writes figures to files chooses a backend for that."""
  code = "import sys, experiments.seed_runs, experiments.panels; "
  code += "sys.exit('matplotlib.pyplot' in sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)
