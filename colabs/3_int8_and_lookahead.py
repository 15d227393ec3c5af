# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/fflax/blob/main/colabs/3_int8_and_lookahead.ipynb)
#
# # Training in int8, and looking ahead
#
# A layer that learns from its own loss needs no activations of other layers and no long chain of
# gradients, so it suits small hardware. FF-INT8 (Ma, Panda, Reda, DAC 2025,
# [arXiv 2506.22771](https://arxiv.org/abs/2506.22771)) goes two steps further: **all products of
# training are in int8**, and to win back accuracy each layer **looks ahead** at the losses above it.
# Both are settings here, for any method and network. This notebook measures what each of them does
# on the digits, with three seeds.

# %%
import sys

if "google.colab" in sys.modules:
  # %pip install -q git+https://github.com/OWNER/fflax
  pass

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import fflax
from experiments.assembly import build, prove_locality, trainer_parts
from experiments.card import card, find_task
from experiments.config import load_preset
from experiments.panels import draw_locality, draw_seeds
from experiments.seed_runs import train_seeds
from fflax.core.quantize import dequantize, quantize, rounding_noise

# %% [markdown]
# ## Rounding
#
# A tensor $v$ becomes whole numbers $q \in [-127, 127]$ with one scale $s = \max|v| / 127$. Rounding to
# nearest makes everything below $s/2$ zero, always. *Stochastic* rounding goes up with the
# probability of the fraction, so that it is right on average:
#
# $$q = \lfloor v/s \rfloor + \mathbb 1\big[u < v/s - \lfloor v/s \rfloor\big],\quad u \sim U[0,1)
# \qquad\Rightarrow\qquad \mathbb E[q\,s] = v.$$
#
# To see what that means for a gradient, we take a real one: with plain SGD at rate 1, the gradient is
# what a step subtracts from the weights.

# %%
# 74-256-256, the label before the pixels, Adam; the preset itself trains for 60 epochs.
preset = dataclasses.replace(load_preset("ffint8_digits"), epochs=30)
experiment = build(preset)
parts = trainer_parts(preset, num_classes=10, steps_per_epoch=1) | {"optimizer": optax.sgd(1.0)}
trainer = fflax.make_trainer(image_shape=(8, 8, 1), **parts)
batch = experiment.example(100)
state = jax.jit(trainer.init)(jax.random.key(0), batch)
new, _ = jax.jit(trainer.step)(state, batch)

before, after = (
  trainer.layer_states(s)[0].params["layer"]["dense"]["kernel"] for s in (state, new)
)
gradient = before - after
nearest = dequantize(quantize(gradient))


@jax.jit
def rounded(key):
  noise = rounding_noise(key, gradient.shape)
  return dequantize(quantize(gradient, rounding="stochastic", noise=noise))


draws = jax.vmap(rounded)(jax.random.split(jax.random.key(1), 200))
alive = gradient != 0
lost = float(jnp.mean((nearest == 0)[alive]))
print(f"rounding to nearest makes {100 * lost:.0f} % of the entries of this gradient zero")
for name, value in (
  ("nearest", nearest),
  ("one draw", draws[0]),
  ("mean of 200 draws", draws.mean(0)),
):
  error = jnp.linalg.norm(value - gradient) / jnp.linalg.norm(gradient)
  sums = float(jnp.sum(jnp.abs(value)) / jnp.sum(jnp.abs(gradient)))
  print(f"{name:18s} relative error {100 * float(error):5.1f} %, size kept {100 * sums:5.1f} %")

# %% [markdown]
# A single stochastic draw is *noisier* than rounding to nearest. Its merit is that the error has mean
# zero and averages out over steps, while what nearest loses is lost in every step. Of this gradient that
# is little in size, although many entries are lost.
#
# ## Looking ahead
#
# The paper adds the later losses to a layer's own, $L_l + \lambda\,(L_{l+1} + \dots + L_L)$, and says
# that no chain of gradients is needed. Both cannot hold, so the library has two readings, and
# *measures* what each does to locality:
#
# - `exact`: the gradient of the sum as written. It is
#   $(1-\lambda)\,\nabla L_l + \lambda\,\nabla (L_1 + \dots + L_L)$, so $\lambda = 0$ is the local rule and
#   $\lambda = 1$ is deeply supervised backprop.
# - `scalar`: no chain, only numbers go down. The later layers' slopes make an example's own gradient
#   longer or shorter; its direction stays.
#
# Row $i$, column $j$: the loss of layer $i$ moves layer $j$.

# %%
deep = dataclasses.replace(preset, networks={"mlp": {"sizes": (256, 256, 256)}})
matrices = {}
for mode in ("none", "exact", "scalar"):
  ahead = fflax.LookaheadConfig(mode=mode)
  matrices[mode] = prove_locality(build(dataclasses.replace(deep, lookahead=ahead)))
  print(mode, matrices[mode].astype(int).tolist())

# %% [markdown]
# Both readings give up locality: a loss above moves the layers below it, be it through a gradient or
# through a number. A method that is run with look-ahead is reported as "lookahead", whatever it
# declares.
#
# ## Does it help, and does int8 hurt?
#
# Three seeds of a run are one program (`train_seeds`): the state has a leading axis, and the step is
# vmapped over it. `slope=0.04` raises $\lambda$ by 0.04 an epoch (the paper: 0.001), up to 1. Two layers,
# 30 epochs.

# %%
SEEDS, NUMERICS = (0, 1, 2), ("float32", "int8", "int8_nearest")
rules = {
  "local": fflax.LookaheadConfig(),
  "exact look-ahead": fflax.LookaheadConfig(mode="exact", slope=0.04),
}
errors = {}
for name, lookahead in rules.items():
  for numerics in NUMERICS:
    config = dataclasses.replace(preset, numerics=numerics, lookahead=lookahead)
    errors[name, numerics] = found = train_seeds(config, SEEDS).error_percent()
    print(f"{name:18s} {numerics:13s} {found.mean():5.2f} +- {found.std(ddof=1):.2f} % error")

# %% tags=["figure"]
figure, axes = plt.subplots(
  1, 3, figsize=(12, 3.2), layout="constrained", width_ratios=(1, 1, 1.25)
)
scale = float(jnp.max(jnp.abs(gradient)) / 127)
small = np.flatnonzero(np.abs(gradient).ravel() < 2 * scale)[::7]
x = np.asarray(gradient).ravel()[small] / scale
axes[0].plot(x, np.asarray(draws.mean(0)).ravel()[small] / scale, ".", ms=3, color="#0072B2")
axes[0].plot(x, np.asarray(nearest).ravel()[small] / scale, ".", ms=3, color="#D55E00")
axes[0].plot([], [], "o", color="#0072B2", label="stochastic, mean of 200")
axes[0].plot([], [], "o", color="#D55E00", label="nearest")
axes[0].set(xlabel="gradient entry / scale", ylabel="as quantised / scale", title="small gradients")
axes[0].legend(frameon=False, fontsize=8)

draw_locality(axes[1], matrices, "which layer (column) a loss moves")

for i, (numerics, color) in enumerate(
  (("float32", "#444444"), ("int8", "#0072B2"), ("int8_nearest", "#D55E00"))
):
  for j, name in enumerate(rules):
    draw_seeds(axes[2], j + 0.2 * (i - 1), errors[name, numerics], color)
  axes[2].plot([], [], "o", color=color, label=numerics)
axes[2].set_xticks(range(len(rules)), rules)
axes[2].set(ylabel="test error (%)", title="three seeds each, and their mean", ylim=(0, None))
axes[2].legend(frameon=False, fontsize=8, loc="lower left")
for ax in axes[::2]:
  ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# Read it with its spread in mind: one test image is 0.28 %, and three seeds are few. On a task as
# small as this one int8 costs nothing that three seeds could show, and rounding to nearest does as
# well as stochastic rounding. Exact look-ahead lowers the error, and the matrix tells at what price:
# the rule is no longer local.
#
# ## What it costs
#
# Counted from the traced step, not estimated from a formula: multiply-accumulates by type, and energy
# modelled with the table of M. Horowitz (ISSCC 2014, 45 nm), beside the same network trained by
# backprop in float32.

# %%
config = dataclasses.replace(preset, numerics="int8")
columns = card(config, find_task(config), memory=False)["columns"]
for title in ("run", "backprop float32"):
  training = columns[title]["training"]
  print(f"{title}: {training['macs']:,.0f} MACs an example")
  for kind, number in training["macs_by_type"].items():
    print(f"   {kind:24s} {number:12,.0f}")
  picojoules = training["energy_pj"]["none"]
  print(
    f"   arithmetic {picojoules / 1e6:.2f} uJ, with weights in DRAM {training['energy_pj']['dram_weights'] / 1e6:.1f} uJ"
  )

# %% [markdown]
# Forward-Forward shows every image twice, so it multiplies more often than backprop; each product is
# cheaper. Which of the two wins depends on the energy of memory, which is why the card prints both.
#
# From a command line: `python -m experiments.train --config=experiments/configs/ffint8_digits.py
# --config.numerics=int8 --config.lookahead.mode=exact --config.lookahead.slope=0.02`, and
# `python -m experiments.cost` for the card. Published comparisons are in
# [the README](https://github.com/OWNER/fflax#results).
