# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/fflax/blob/main/colabs/1_quickstart.ipynb)
#
# # Forward-Forward in five minutes
#
# Backpropagation sends an error from the last layer to the first. *Forward-Forward* (G. Hinton,
# 2022, [arXiv 2212.13345](https://arxiv.org/abs/2212.13345)) does not: every layer has a loss of
# its own, and nothing flows back between layers.
#
# A layer with activities $h_l$ measures how much it likes an input by its *goodness*
# $G_l = \sum_j h_{lj}^2$. The label is part of the input, so that each image gives two examples: a
# **positive** one, written with its true label, and a **negative** one, written with a wrong label.
# The layer raises the goodness of the first and lowers that of the second:
#
# $$L_l = \tfrac12\,\mathrm{softplus}\big(\theta_l - G_l^{\text{pos}}\big)
#       + \tfrac12\,\mathrm{softplus}\big(G_l^{\text{neg}} - \theta_l\big).$$
#
# This notebook trains such a network on real digits, measures that it is local, shows what its
# layers have learned, and repeats it on MNIST where that is at hand.

# %%
import sys

if "google.colab" in sys.modules:
  # %pip install -q git+https://github.com/OWNER/fflax
  pass

# %%
import os
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import fflax
from fflax import data

# %% [markdown]
# ## Data
#
# scikit-learn's 8x8 digits are bundled: 1,437 images to train on, 360 to test. Images stay as they
# are stored (small integers) until a batch is made.

# %%
digits = data.load("digits")
print(digits.train.image.shape, digits.train.image.dtype, digits.test.image.shape)


def images_of(split, max_value):
  return jnp.asarray(split.image, jnp.float32) / max_value


# %% [markdown]
# ## A network, a method, a trainer
#
# A run is a choice of five things: **network** x **numerics** x **method** x **schedule** x
# **readout**. What does not fit together is refused here, with one sentence. `score_sum` answers
# with the label under which the layers' goodness adds up highest.


# %%
def make_trainer(method, config, dataset, sizes):
  return fflax.make_trainer(
    fflax.make_network("mlp", numerics=fflax.float32(), sizes=sizes),
    fflax.make_method(method, config, num_classes=dataset.num_classes),
    [fflax.score_sum()],
    image_shape=dataset.train.image.shape[1:],
    optimizer=optax.adam(1e-3),  # every layer has its own state of it
  )


config = fflax.ForwardForwardConfig(label_style="prepend", negatives="goodness_hard")
trainer = make_trainer("forward_forward", config, digits, sizes=(300, 300, 300))

# %% [markdown]
# A trainer is a handful of pure functions. `init` makes a state from a key; `step` maps a state and
# a batch to the next state; `answer` predicts. There is nothing else to keep.

# %%
first = fflax.Batch(
  images_of(digits.train, digits.max_value)[:100], jnp.asarray(digits.train.label)[:100]
)
state = jax.jit(trainer.init)(jax.random.key(0), first)
_, metrics = jax.jit(trainer.step)(state, first)
for name, value in metrics.items():
  print(f"{name:16s}", np.asarray(value).round(2))

# %% [markdown]
# ## Is it local?
#
# Row $i$, column $j$: does layer $j$ move, by a single bit, if only the loss of layer $i$ counts?
# It is measured on the training step itself. Backprop would fill the lower triangle.


# %%
@jax.jit
def moved(state, weights):
  new, _ = trainer.step(state, first, loss_weights=weights)
  return tuple(layer.params for layer in trainer.layer_states(new))


print(fflax.locality_matrix(lambda w: moved(state, w), num_layers=3).astype(int))

# %% [markdown]
# ## Training
#
# An epoch is one `lax.scan`; the examples of each step are a pure function of a key and the step's
# number. Every few epochs we ask each layer, and all of them together, for the test labels.


# %%
def train(trainer, dataset, epochs, evaluate_every, batch_size=100):
  """The final state, and rows of (epoch, accuracy of each layer ..., accuracy of all)."""
  images, labels = jnp.asarray(dataset.train.image), jnp.asarray(dataset.train.label)
  test = images_of(dataset.test, dataset.max_value)
  steps = data.steps_per_epoch(len(labels), batch_size)

  def batch(images, labels, rows):
    return fflax.Batch(images[rows] / dataset.max_value, labels[rows])

  @jax.jit
  def run_epoch(state, images, labels, epoch):
    rows = data.batch_indices(jax.random.key(1), epoch * steps, steps, len(labels), batch_size)
    state, _ = jax.lax.scan(lambda s, r: trainer.step(s, batch(images, labels, r)), state, rows)
    return state

  answer = jax.jit(trainer.answer)

  def accuracies(state):
    right = []
    for part, label in zip(
      jnp.array_split(test, max(1, len(test) // 1000)),
      np.array_split(dataset.test.label, max(1, len(test) // 1000)),
      strict=True,
    ):
      found = answer(state, part)
      scores = [*found.layers, *found.readouts.values()]
      right.append([np.asarray(s.argmax(-1)) == label for s in scores])
    return np.concatenate(right, axis=1).mean(axis=1)

  state = jax.jit(trainer.init)(jax.random.key(0), batch(images, labels, jnp.arange(2)))
  curve, start = [], time.perf_counter()
  for epoch in range(epochs):
    state = run_epoch(state, images, labels, epoch)
    if (epoch + 1) % evaluate_every == 0:
      curve.append([epoch + 1, *accuracies(state)])
  layers = " ".join(f"{100 * a:.1f}" for a in curve[-1][1:-1])
  seconds = time.perf_counter() - start
  print(f"{100 * curve[-1][-1]:.2f} % of the test images (layers {layers}), {seconds:.0f} s")
  return state, np.array(curve)


state, curve = train(trainer, digits, epochs=60, evaluate_every=3)

# %% [markdown]
# ## What the layers have learned
#
# Left: accuracy while training. Every layer is a classifier of its own. Right: the goodness of the
# test images written with the true label and with a wrong one (drawn as in training: wrong labels with a
# high goodness more often), and the threshold, one for each of the 300 units. The further apart the two, the surer
# a layer is. The first layer sees pixels and label side by side; the layers above it see only the
# *direction* of the activities below (their length is normalised away), so each has to find new
# evidence.

# %% tags=["figure"]
test = fflax.Batch(images_of(digits.test, digits.max_value), jnp.asarray(digits.test.label))
goodness = np.asarray(trainer.goodness(state, test, jax.random.key(2)))  # [L, V, B]

figure, axes = plt.subplots(
  1, 4, figsize=(12, 2.9), layout="constrained", width_ratios=(1.5, 1, 1, 1)
)
colors = plt.colormaps["viridis"](np.linspace(0, 0.8, 3))
for layer, color in enumerate(colors):
  axes[0].plot(curve[:, 0], 100 * curve[:, 1 + layer], color=color, label=f"layer {layer + 1}")
axes[0].plot(curve[:, 0], 100 * curve[:, -1], "k--", label="all layers")
axes[0].set(xlabel="epoch", ylabel="test accuracy (%)", title="digits", ylim=(85, 100))
axes[0].legend(frameon=False)
for layer, ax in enumerate(axes[1:]):
  bins = np.linspace(*np.quantile(goodness[layer], [0.002, 0.998]), 40)
  for view, name, color in ((0, "true label", "#0072B2"), (1, "wrong label", "#D55E00")):
    ax.hist(goodness[layer, view], bins, color=color, alpha=0.65, label=name)
  ax.axvline(300, color="gray", ls=":", label="threshold")
  ax.set(title=f"layer {layer + 1}", xlabel="goodness", yticks=[])
axes[1].legend(frameon=False)
for ax in axes:
  ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## How an answer comes about
#
# A test image is written with each of the ten labels; the label with the highest goodness wins.
# Here are the scores of the test image about which the network is least sure.

# %%
answers = jax.jit(trainer.answer)(state, test.image)
scores = np.asarray(answers.readouts["score_sum"])
ranked = np.sort(scores, axis=1)
unsure = int(np.argmin(ranked[:, -1] - ranked[:, -2]))
print("true label", int(test.label[unsure]))
for label, score in enumerate(scores[unsure]):
  print(
    label, f"{score:6.1f}", "#" * int(40 * (score - ranked[unsure, 0]) / np.ptp(ranked[unsure]))
  )

# %% [markdown]
# ## MNIST, in one pass
#
# Ten candidate labels are ten passes. *Hyperspherical* Forward-Forward
# ([arXiv 2605.00082](https://arxiv.org/abs/2605.00082)) gives every layer a prototype of each class
# on the unit sphere instead: it trains and answers in a single pass, and is as local. All that
# changes is the method's name and its configuration.
#
# Nothing here downloads anything. MNIST is used if `mnist.npz`, or the set as prepared by
# tensorflow-datasets, lies where `FFLAX_DATA_DIR` or tensorflow-datasets says
# (`python -m experiments.prepare_data --dataset=mnist` puts it there); if not, the next cell says so
# and goes on with the digits.

# %%
try:
  dataset, epochs = data.load("mnist", data_dir=os.environ.get("FFLAX_DATA_DIR")), 2
except data.DataError as error:
  print(f"MNIST is not on this machine, so the digits stand in ({error}).")
  dataset, epochs = digits, 60

one_pass = make_trainer(
  "hyperspherical", fflax.HypersphericalConfig(), dataset, sizes=(300, 300, 300)
)
_, curve = train(one_pass, dataset, epochs=epochs, evaluate_every=epochs)

# %% [markdown]
# ## The same from a command line
#
# ```
# python -m experiments.train --config=experiments/configs/ff_digits.py --workdir=runs/ff
# python -m experiments.train --config=experiments/configs/ff_digits.py --config.method=backprop
# ```
#
# A run that is cut goes on where it was, a finished one is evaluated again, and every number stands
# beside its measured locality. [The README](https://github.com/OWNER/fflax#notebooks) lists the other
# notebooks.
