# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/fflax/blob/main/colabs/6_parallel_layers_and_sweeps.ipynb)
#
# # Layers in parallel, and many runs at once
#
# A step in fflax is a pure function of a state and a batch, and a state is one tree of arrays. Two
# things follow, and this notebook does both:
#
# - **sweeps**: seeds and learning rates are axes to `jax.vmap` over, so that dozens of runs are one
#   program;
# - **pipelines**: no gradient crosses a layer, so layers on different devices work on *different
#   batches* at the same time. Nothing waits for a backward pass, and the numbers do not change.

# %%
import sys

if "google.colab" in sys.modules:
  # %pip install -q git+https://github.com/OWNER/fflax
  pass

# %%
import os

# Before jax is imported: four devices, for show. They share the cores that this machine has.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import fflax
from fflax import data
from fflax.analysis.pipeline_schedule import backprop_pipeline, pipelined
from fflax.training.chunk import Feed, make_chunk
from fflax.training.pipeline import make_pipeline

devices = jax.devices("cpu")[:4]
digits = data.load("digits")
images, labels = jnp.asarray(digits.train.image), jnp.asarray(digits.train.label)
test = jnp.asarray(digits.test.image, jnp.float32) / digits.max_value
BATCH = 64


def make(rate, depth=3, method="hyperspherical", config=None):
  return fflax.make_trainer(
    fflax.make_network("mlp", numerics=fflax.float32(), sizes=(128,) * depth),
    fflax.make_method(method, config or fflax.HypersphericalConfig(), digits.num_classes),
    [fflax.score_sum()],
    image_shape=digits.train.image.shape[1:],
    optimizer=optax.adam(rate),
  )


def batch(rows):
  return fflax.Batch(images[rows] / digits.max_value, labels[rows])


# %% [markdown]
# ## A sweep is two vmaps
#
# One run, from its key and its learning rate to its test accuracy, written as if it were alone. The
# rate is an argument like any other: the trainer is made inside.


# %%
def run(key, rate, steps=300):
  trainer = make(rate)
  rows = data.batch_indices(key, 0, steps, len(labels), BATCH)
  state = trainer.init(key, batch(rows[0]))
  state, _ = jax.lax.scan(lambda s, r: trainer.step(s, batch(r)), state, rows)
  scores = trainer.answer(state, test).readouts["score_sum"]
  return jnp.mean(scores.argmax(-1) == digits.test.label)


RATES = jnp.asarray([1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2])
keys = jax.vmap(jax.random.key)(jnp.arange(4))

sweep = jax.jit(jax.vmap(jax.vmap(run, in_axes=(0, None)), in_axes=(None, 0)))
accuracy = 100 * np.asarray(sweep(keys, RATES))  # [rates, seeds]
for rate, found in zip(RATES, accuracy, strict=True):
  print(f"rate {rate:.0e}: {found.mean():.2f} +- {found.std(ddof=1):.2f} %")

# %% [markdown]
# Twenty-four runs, compiled once. A run under `vmap` is the run alone, up to the rounding of sums that
# the compiler orders differently:

# %%
alone = jax.jit(run)
one = 100 * float(alone(keys[1], RATES[2]))
print(f"alone {one:.2f} %, in the sweep {accuracy[2, 1]:.2f} %")
seconds = {}
for name, call in {
  "one": lambda: alone(keys[1], RATES[2]),
  "all": lambda: sweep(keys, RATES),
}.items():
  start = time.perf_counter()
  jax.block_until_ready(call())
  seconds[name] = time.perf_counter() - start
print(
  f"24 runs took {seconds['all'] / seconds['one']:.0f} times as long as one, on this machine, now"
)

# %% [markdown]
# A CPU that one run keeps busy gains nothing from 24 at once but that they are compiled once. On an
# accelerator, most of which one small run leaves idle, the factor is what makes sweeps cheap.
#
# A learning rate chosen by the *test* accuracy, as in this picture, is a choice made in view of the
# answer: hold out a validation part (`data.load("digits", validation=200)`) before you quote a number.
#
# ## Layers that do not wait
#
# Let stage $s$ (one or more layers on a device of its own) need $t_s$ for a batch. Local learning
# sends activations up and nothing down, so after the fill all devices are busy:
#
# $$T_{\text{local}}(N) = \sum_s t_s + (N - 1)\, \max_s t_s.$$
#
# Backprop must bring an error down again before weights move. Cut into $m$ micro-batches (GPipe,
# [arXiv 1811.06965](https://arxiv.org/abs/1811.06965)), $S$ devices are busy for $m / (m + S - 1)$ of
# the time. Both schedules, simulated, with four equal stages and the same work for both:

# %%
local = pipelined([1.0] * 4, batches=12)
gpipe = backprop_pipeline([1 / 3] * 4, [2 / 3] * 4, micro_batches=4, steps=12)
for name, timeline in (("local", local), ("backprop", gpipe)):
  print(f"{name:9s} 12 batches on 4 devices: {timeline.speedup:.2f} times as fast as on one")

# %% [markdown]
# ## The same numbers
#
# That is a model. This is the run: four layers on four devices, each taking batch after batch as they
# arrive. The devices here are threads of one machine, so nothing is said about speed. What can be
# checked is that **a pipeline does not change the result**: there is no stale weight in it, unlike in
# asynchronous training.

# %%
feed = Feed(
  lambda key, first_step, steps: data.batch_indices(key, first_step, steps, len(labels), BATCH),
  lambda key, image: image / digits.max_value,
)
trainer = make(1e-3, depth=4)
state = jax.jit(trainer.init)(jax.random.key(0), batch(jnp.arange(2)))

STEPS = 100
ordinary, _ = make_chunk(trainer, feed, STEPS)(jax.tree.map(jnp.copy, state), images, labels, STEPS)

pipeline = make_pipeline(trainer, feed, STEPS, sizes=(1, 1, 1, 1), devices=devices)
parts = pipeline.scatter(state)
parts, _ = pipeline.chunk(parts, images, labels, STEPS)
print([str(jax.tree.leaves(part.layers)[0].devices()) for part in parts])

together = pipeline.gather(parts)
for name, a, b, c in zip(
  trainer.layer_names,
  trainer.layer_states(ordinary),
  trainer.layer_states(together),
  trainer.layer_states(state),
  strict=True,
):
  a, b, c = (np.asarray(s.params["layer"]["dense"]["kernel"]) for s in (a, b, c))
  moved, apart = np.abs(a - c).max(), np.abs(a - b).max()
  print(f"{name}: moved by {moved:.3f}, pipeline and ordinary run differ by at most {apart:.1e}")

# %% [markdown]
# What cannot be pipelined in this way is refused with its reason:

# %%
try:
  make_pipeline(
    make(1e-3, 4, "backprop", fflax.BackpropConfig()), feed, STEPS, (1, 1, 1, 1), devices
  )
except ValueError as error:
  print(error)

# %% tags=["figure"]
figure = plt.figure(figsize=(12, 3.4), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(1.7, 1))
axes = left.subplots(2, 1, sharex=True)
colors = plt.colormaps["viridis"](np.linspace(0.1, 0.9, 4))
for ax, timeline, name in ((axes[0], local, "local"), (axes[1], gpipe, "backprop")):
  for work, start in timeline.starts.items():
    length = 1.0 if name == "local" else (2 if work.backward else 1) / 12
    shade = colors[work.batch % 4] if name == "local" else colors[work.batch // 4 % 4]
    ax.barh(3 - work.stage, length, left=start, height=0.8, color=shade, edgecolor="white", lw=0.4,
            hatch="////" if work.backward else None)  # fmt: skip
  ax.set_yticks(range(4), ["layer 4", "layer 3", "layer 2", "layer 1"])
  ax.set_title(f"{name}: {timeline.speedup:.1f} times as fast as one device", fontsize=10)
  ax.spines[["top", "right"]].set_visible(False)
axes[1].set_xlabel(
  "time (a batch through one stage is 1); colours: batches; hatched: backward, 4 micro-batches"
)

ax = right.subplots()
ax.errorbar(RATES, accuracy.mean(1), accuracy.std(1, ddof=1), fmt="o-", color="#0072B2", capsize=3)
ax.plot(np.repeat(RATES[:, None], 4, 1).ravel(), accuracy.ravel(), ".", color="gray", ms=4)
ax.set(
  xscale="log", xlabel="learning rate", ylabel="test accuracy (%)", title="24 runs, one program"
)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# From a command line, `python -m experiments.sweep` runs grids and searches of any preset, seeds and
# float hyper-parameters as one program, and goes on where it was cut.
# [fflax/README.md](https://github.com/OWNER/fflax/blob/main/fflax/README.md) says how meshes split
# batches, sweeps and layers over devices.
