"""Pipelines: the bits of the ordinary run, on several devices; and what cannot be one."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.training import schedules, streaming
from fflax.training.chunk import Feed
from fflax.training.lookahead import constant
from fflax.training.loop import Plan, train
from fflax.training.pipeline import make_pipeline
from fflax.training.spmd_pipeline import make_spmd_pipeline, share_out
from fflax.training.streaming import Stream
from tests.training import tiny_layers as tiny

ROOT = pathlib.Path(__file__).parents[2]


def compare(stages: int, layers: int, *cases: str, flags: str = "") -> dict:
  """What `tests.training.pipelines` finds, in a process with that many devices."""
  flags += f" --xla_force_host_platform_device_count={stages}"
  done = subprocess.run(
    [sys.executable, "-m", "tests.training.pipelines", str(stages), str(layers), *cases],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    timeout=1800,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def assert_equal_bits(stages: int, layers: int, cases: tuple[str, ...], flags: str = "") -> None:
  found = compare(stages, layers, *cases, flags=flags)
  assert sorted(found) == sorted(cases)
  for name, result in found.items():
    assert result["moved"] > 8, f"{name} hardly learned: the test is blind"
    assert result["devices"] == stages
    assert not result["mpmd"], f"{name} is not the ordinary run: {result}"
    assert not result["spmd"], f"{name} in one program is not the ordinary run: {result}"


def test_every_bit_of_the_ordinary_run_on_two_devices():
  """A readout with its own pass, layers that hand on what they learned; dropout and rounding.

  In one program the first device has a layer or two more, and the last one may have one.
  """
  cases = ("forward_forward-interleaved", "dtg-int8")
  # Compiled in a quarter of the time; the slow test has all optimisations.
  assert_equal_bits(2, 4, cases, "--xla_backend_optimization_level=0")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "-int8", "-pbits", "-interleaved"])
@pytest.mark.parametrize(("stages", "layers"), [(2, 5), (4, 10), (8, 10)])
def test_every_bit_of_every_strict_method(stages, layers, kind):
  """Stages cut through a stack, and in one program devices have one or two layers each."""
  names = ("forward_forward", "hyperspherical", "channelwise", "dtg", "local_losses")
  assert_equal_bits(stages, layers, tuple(name + kind for name in names))


@pytest.mark.parametrize(
  ("runs", "devices", "share"),
  [
    ((3,), 1, (0, 3, 0)),
    ((8,), 2, (0, 4, 0)),
    ((1, 8), 8, (1, 1, 0)),
    ((1, 9, 1), 4, (2, 2, 1)),
    ((2, 1, 5, 5), 2, (4, 2, 5)),
  ],
)
def test_equal_layers_are_shared_out(runs, devices, share):
  """By hand: the longest run, its rest with the first device."""
  assert share_out(runs, devices, "tiny") == share


def test_too_few_equal_layers_are_refused():
  sentence = "^one program .* of 3 devices needs .* network 'tiny' has 2: use mesh.pipeline='mpmd'$"
  with pytest.raises(ValueError, match=sentence):
    share_out((1, 2, 1), 3, "tiny")


CAPACITY, NUM = 6, 40


def feed() -> Feed:
  """Examples in order, with noise that tells steps apart."""

  def indices(key, first_step, num_steps):
    del key
    first = first_step * tiny.ROWS
    return ((first + jnp.arange(num_steps * tiny.ROWS)) % NUM).reshape(num_steps, tiny.ROWS)

  return Feed(indices, lambda key, x: x + 0.1 * jax.random.normal(key, x.shape))


def stream(last_step: int) -> Stream:
  """The same batches, taken on the host step by step."""
  images, labels = map(np.asarray, data())

  def start(key, first_step):
    rows = np.asarray(feed().indices(key, first_step, last_step - first_step))
    yield from ((images[i], labels[i]) for i in rows)

  return Stream(start, tiny.ROWS, tiny.ROWS * 4)


def data() -> tuple[jax.Array, jax.Array]:
  rng = np.random.default_rng(0)
  image = jnp.asarray(rng.normal(size=(NUM, tiny.SIZE)), jnp.float32)
  return image, jnp.asarray(rng.integers(0, tiny.CLASSES, NUM), jnp.int32)


def strip(*results):
  """Keys as numbers."""
  is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)  # noqa: E731
  return [jax.tree.map(lambda a: jax.random.key_data(a) if is_key(a) else a, r) for r in results]


def trainer_of(**changes):
  options = {k: changes.pop(k) for k in ("schedule", "lookahead") if k in changes}
  return tiny.trainer(tiny.METHOD._replace(**changes), **options)


@pytest.mark.parametrize(
  ("changes", "sizes", "sentence"),
  [
    ({"schedule": schedules.greedy(3)}, (1, 2), "layers take turns"),
    ({"lookahead": constant(0.1)}, (1, 2), "'tiny' look ahead in this run"),
    ({"locality": "collaborative"}, (1, 2), "'tiny' are collaborative in this run"),
    ({"locality": "global"}, (1, 2), "'tiny' are global in this run"),
    ({"negatives_from": "scores"}, (1, 2), "draws hard negatives from what all layers answer"),
    ({}, (1, 1), r"share out the 3 layers of network 'tiny', .* not \[1, 1\]"),
    ({}, (3, 0), r"at least one each, not \[3, 0\]"),
    ({}, (), r"not \[\]"),
    ({}, (1, 1, 1), "a pipeline of 3 stages asks for 3 devices, but there are 1"),
  ],
)
def test_what_cannot_be_a_pipeline_is_refused(changes, sizes, sentence):
  with pytest.raises(ValueError, match=sentence):
    make_pipeline(trainer_of(**changes), feed(), CAPACITY, sizes)


def test_the_loop_drives_a_pipeline(tmp_path, monkeypatch):
  """It resumes what one device has begun; rows, evaluations and the end are those of one device."""
  trainer = tiny.trainer()
  state = tiny.jit(trainer.init)(jax.random.key(0), tiny.batch())
  scores = jax.jit(lambda s: {"test/sum": jnp.sum(trainer.answer(s, data()[0]).layers[-1])})
  plan = Plan(num_steps=12, steps_per_epoch=5, log_every=3, eval_every=6, checkpoint_every=6)

  def run(name, plan, pipeline, feed=feed(), data=data()):  # noqa: B008
    folder = tmp_path / name
    return train(
      trainer, feed, state, *data, plan, evaluate=scores, directory=folder, pipeline=pipeline
    ), (folder / "metrics.jsonl").read_bytes()

  whole = run("whole", plan, None)
  share = share_out(trainer.equal_layers, 1, "tiny")
  for name, pipeline in (
    ("mpmd", functools.partial(make_pipeline, sizes=(3,))),
    ("spmd", functools.partial(make_spmd_pipeline, share=share, num_devices=1)),
  ):
    run(name, dataclasses.replace(plan, num_steps=6), None)
    piped = run(name, plan, pipeline)
    assert piped[1] == whole[1]
    jax.tree.map(np.testing.assert_array_equal, *strip(piped[0], whole[0]))
  monkeypatch.setattr(streaming, "WINDOW", 2 * tiny.ROWS * 4)  # two of a chunk's three steps
  streamed = run("streamed", plan, pipeline, feed()._replace(stream=stream(12)), (None, None))
  assert streamed[1] == whole[1]
  jax.tree.map(np.testing.assert_array_equal, *strip(streamed[0], whole[0]))
