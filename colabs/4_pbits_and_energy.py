# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/fflax/blob/main/colabs/4_pbits_and_energy.ipynb)
#
# # Units that are on or off: p-bits, accuracy and energy
#
# A *p-bit* is a unit that is 1 or 0 at random. A product with it needs no multiplication: where the
# unit is on, its weights are added. R. Jaiswal, S. Datta and J. G. Makin (2025,
# [arXiv 2507.06461](https://arxiv.org/abs/2507.06461)) train networks of them with Forward-Forward.
# Instead of one unit they take **M units that share one pre-activation** $v$, with offsets, and use
# the number of those that are on:
#
# $$n = \sum_{m=1}^{M} b_m, \qquad b_m \sim \mathrm{Bernoulli}\big(\sigma(v - m + \tfrac12)\big), \qquad
#   \mathbb E[n] = \sum_{m=1}^M \sigma(v - m + \tfrac12) \approx \log(1 + e^v) \text{ up to } M.$$
#
# So M trades hardware for resolution. This notebook draws the curve of accuracy against M and puts
# modelled energy beside it.

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

import fflax
from experiments.assembly import build
from experiments.card import find_task, forward_pass
from experiments.config import load_preset
from experiments.firing import measure_firing, twin_of
from experiments.pbit_hardware import pass_energy
from experiments.seed_runs import train_seeds
from fflax.core.pbit_units import count_variance, expected_count

# %% [markdown]
# ## One site
#
# The count is a noisy softplus with a ceiling. With independent units its variance is
# $\sum_m \sigma_m (1 - \sigma_m)$, which is the derivative of its mean.

# %%
v = jnp.linspace(-4, 12, 200)
sites = {
  m: (expected_count(v, unit), jnp.sqrt(count_variance(v, unit)))
  for m in (1, 3, 7)
  for unit in (fflax.PbitConfig(units=m),)
}
for m, (mean, deviation) in sites.items():
  print(f"M = {m}: at most {float(mean.max()):.2f}, deviation at most {float(deviation.max()):.2f}")

# %% [markdown]
# ## Accuracy against M
#
# The paper's method is channel-wise (`load_preset("bsff_digits")`, a convolutional network). But units
# are a choice of their own, so *any* method can have them. Here it is hyperspherical Forward-Forward, a
# perceptron with three layers of 128 sites: each layer compares its counts with a prototype of every
# class, by their cosine. The gradient passes a unit as the effect of switching it on times
# $\sigma_m(1 - \sigma_m)$. Thirty epochs, two seeds in one program.
#
# A trained network can answer in several ways: by its *mean field* (no sampling at all: expectations
# go from layer to layer), or by T sampled passes whose probabilities are averaged.

# %%
preset = dataclasses.replace(
  load_preset("hff_digits"),
  epochs=30,
  networks={"mlp": {"sizes": (128, 128, 128)}},
  activation="pbits",
  readouts=("score_sum",),
)
SEEDS, UNITS, SAMPLES = (0, 1), (1, 2, 3, 7), (1, 4, 16)


def error_percent(runs, samples=()):
  """By number of sampled passes, the test error of every seed; 0 is the mean field."""
  run, states = runs.experiment, runs.states
  images = run.preprocess(None, jnp.asarray(run.dataset.test.image))
  sampled = build(dataclasses.replace(run.config, eval_samples=1), run.dataset) if samples else run

  def answer(trainer):
    def one(state, number):  # an answer draws from the state's key
      own = dataclasses.replace(state, key=jax.random.fold_in(state.key, number))
      return trainer.answer(own, images).readouts["score_sum"]

    return jax.jit(jax.vmap(one, in_axes=(0, None)))

  def error(scores):
    return 100 * np.asarray(jnp.mean(scores.argmax(-1) != run.dataset.test.label, axis=1))

  found, total, ask = {0: error(answer(run.trainer)(states, 0))}, 0.0, answer(sampled.trainer)
  for number in range(max(samples, default=0)):
    total += ask(states, number)
    if number + 1 in samples:
      found[number + 1] = error(total)
  return found


errors, runs = {}, {}
for m in UNITS:
  runs[m] = train_seeds(dataclasses.replace(preset, pbits=fflax.PbitConfig(units=m)), SEEDS)
  errors[m] = error_percent(runs[m], SAMPLES)
  line = ", ".join(
    f"{f'T = {t}' if t else 'mean field'} {e.mean():.2f}" for t, e in errors[m].items()
  )
  print(f"M = {m}: test error in %, {line}")

# %% [markdown]
# The same network with real-valued units (ReLU), everything else equal, is the twin to compare with.

# %%
twin = train_seeds(twin_of(preset, "float32"), SEEDS)
twin_errors = twin.error_percent()
print(f"real units: {twin_errors.mean():.2f} +- {twin_errors.std(ddof=1):.2f} %")

# %% [markdown]
# ## Energy
#
# What an addition costs depends on how often units fire, so that is **measured** on test images of the
# trained network. Energies of operations are **modelled**: int8 weights and M. Horowitz's table
# (ISSCC 2014, 45 nm), and for the p-bit itself two published figures that differ by three orders of
# magnitude: 2 fJ for a magnetic tunnel junction alone, 1.7 pJ once every sample is read out. The
# first layer multiplies real pixels, whatever the units above it emit.

# %%
task = find_task(preset)
readout = preset.readouts[0]
energy = {}
for m, (run, _, states) in runs.items():
  firing = measure_firing(run, jax.tree.map(lambda x: x[0], states))
  one = forward_pass(run.config, task, readout, firing)
  for pbit in ("smtj", "spice_flip_read"):
    energy[m, pbit] = [pass_energy(one, "int8", samples=t, pbit=pbit) / 1e3 for t in SAMPLES]
  rates = ", ".join(f"{layer['layer']} {layer['mean_count']:.2f} of {m}" for layer in firing.layers)
  print(f"M = {m}: mean count {rates}; one pass {energy[m, 'smtj'][0]:.1f} nJ")
real = forward_pass(twin.experiment.config, task, readout, None)
real_energy = {width: pass_energy(real, width) / 1e3 for width in ("float32", "int8")}
print(
  f"real units: {real_energy['float32']:.1f} nJ in float32, {real_energy['int8']:.1f} nJ in int8"
)

# %% tags=["figure"]
figure, axes = plt.subplots(1, 3, figsize=(12, 3.3), layout="constrained")
colors = dict(zip(UNITS, plt.colormaps["viridis"](np.linspace(0, 0.85, len(UNITS))), strict=True))
axes[0].plot(v, jax.nn.softplus(v), "k:", label="softplus")
for m, (mean, deviation) in sites.items():
  axes[0].plot(v, mean, color=colors[m], label=f"M = {m}")
  axes[0].fill_between(v, mean - deviation, mean + deviation, color=colors[m], alpha=0.2, lw=0)
axes[0].set(
  xlabel="pre-activation v", ylabel="units on: mean, deviation", ylim=(-0.5, 9), title="one site"
)

for samples, style in ((0, "k-"), (1, "^--"), (16, "s-.")):
  label = "mean field" if samples == 0 else f"{samples} sampled pass{'es' * (samples > 1)}"
  axes[1].plot(UNITS, [errors[m][samples].mean() for m in UNITS], style, ms=5, label=label)
  for m in UNITS:
    axes[1].plot([m] * len(SEEDS), errors[m][samples], ".", ms=4, color="gray")
axes[1].axhline(twin_errors.mean(), color="#D55E00", lw=1, label="real units")
axes[1].set(
  xlabel="M", ylabel="test error (%)", title="accuracy against M", xticks=UNITS, ylim=(0, None)
)

for m in UNITS:
  mean = [errors[m][t].mean() for t in SAMPLES]
  axes[2].plot(energy[m, "smtj"], mean, "o-", ms=4, color=colors[m], label=f"M = {m}")
  axes[2].plot(energy[m, "spice_flip_read"], mean, "o:", ms=4, mfc="white", color=colors[m])
for width, marker in (("float32", "*"), ("int8", "P")):
  axes[2].plot(
    real_energy[width], twin_errors.mean(), marker, ms=10, color="#D55E00", label=f"real, {width}"
  )
axes[2].set(
  xscale="log",
  xlabel="modelled nJ an answer",
  title="1, 4, 16 passes; open: with read-out",
  ylim=(0, None),
)
for ax in axes:
  ax.legend(frameon=False, fontsize=7)
  ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# What this run shows, with the caveat of two seeds on a small task. One p-bit a site is coarse; more
# units and more passes both mend it, and units are the cheaper way: seven units in one pass err about
# as often as one unit in sixteen, at a fraction of the energy. Real units stay ahead (nothing here was
# tuned for p-bits). And how the energies compare depends on what stands beside: all points lie far
# below the network in float32, but in int8 the same network comes close to a single pass, and is
# cheaper than answers of many passes, or of samples that must be read out.
#
# These energies leave out memory, norms and noise generation in conventional logic;
# `python -m experiments.cost --config=experiments/configs/bsff_digits.py` prints the whole card, and
# `python -m experiments.studies.grid --grid=bsff_units_digits` the study with more seeds.
