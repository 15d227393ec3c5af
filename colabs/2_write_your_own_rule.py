# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/fflax/blob/main/colabs/2_write_your_own_rule.ipynb)
#
# # Write your own local rule
#
# In fflax a local rule is a `fflax.Method`: a NamedTuple of pure functions that say what every layer
# is asked to do. The library owns the rest: the forward sweep, the stopped gradients between layers,
# keys, optimisers, schedules, evaluation. The page
# [docs/write_your_own_rule.md](https://github.com/OWNER/fflax/blob/main/docs/write_your_own_rule.md)
# explains each function with a rule of fixed random readouts. Here is one without any readout:
# **every layer pulls images of one class together and pushes the others away**, by supervised
# contrastive learning (P. Khosla et al., 2020,
# [arXiv 2004.11362](https://arxiv.org/abs/2004.11362), eq. 2), which was published for a whole
# network trained end to end. We give it to each layer alone, with $z_i$ the layer's activities on
# image $i$, scaled to unit length, and $P(i)$ the other images of the class in the batch:
#
# $$L = \frac1B \sum_i \frac{-1}{|P(i)|} \sum_{p \in P(i)}
#       \log \frac{\exp(z_i \cdot z_p / \tau)}{\sum_{a \ne i} \exp(z_i \cdot z_a / \tau)}$$

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
from fflax import data

# %% [markdown]
# ## The rule
#
# The loss compares images with each other, so it has no class scores to offer. For these the layer
# keeps a running mean of each class. It moves without a gradient, so it belongs to the layer's
# *statistics*, not to its parameters: state goes in as an argument and comes out as a result, which
# is what lets a run be checkpointed, resumed bit for bit, and vmapped over seeds.


# %%
@dataclasses.dataclass(frozen=True)
class LocalContrastiveConfig:
  temperature: float = 0.2  # tau
  momentum: float = 0.95  # of the running means of the classes


def unit(h):
  """Every example's activities as one vector of length 1, `[B, D]`."""
  h = h.reshape(h.shape[0], -1)
  return h / jnp.sqrt(jnp.sum(h**2, axis=-1, keepdims=True) + 1e-8)


def contrastive_loss(z, label, temperature):
  """Equation 2 of Khosla et al.; anchors that are alone in their class count as zero."""
  others = ~jnp.eye(len(z), dtype=bool)
  same = (label[:, None] == label[None, :]) & others
  log_prob = jax.nn.log_softmax(jnp.where(others, z @ z.T / temperature, -1e9), axis=-1)
  positives = jnp.sum(same, axis=1)
  return -jnp.mean(jnp.sum(jnp.where(same, log_prob, 0), axis=1) / jnp.maximum(positives, 1))


# %% [markdown]
# `out` is a layer's output with leading axes `[V, B]` for views and examples; this rule has one view,
# the image. `local_loss` returns the scalar to be differentiated, and the new statistics and metrics
# beside it.


# %%
def local_contrastive(config, num_classes, numerics=None):
  """Supervised contrastive learning, layer by layer, as a `fflax.Method`."""
  del numerics  # for rules that multiply by trained heads of their own

  def init_layer(key, out, place):
    width = out.out[0].size
    return {}, {"mean": jnp.zeros((num_classes, width), jnp.float32)}

  def class_scores(params, stats, out):
    return unit(out.out[0]) @ unit(stats["mean"]).T / config.temperature

  def local_loss(params, stats, out, label, context, key):
    z = unit(out.out[0])
    member = jax.nn.one_hot(label, num_classes)  # [B, K]
    count = member.sum(0)[:, None]
    now = member.T @ z / jnp.maximum(count, 1)
    rate = jnp.where(count > 0, 1 - config.momentum, 0)
    new = {"mean": (1 - rate) * stats["mean"] + rate * now}
    return contrastive_loss(z, label, config.temperature), (new, {})

  return fflax.Method(
    name="local_contrastive",
    paper="after P. Khosla et al., 2020, arXiv 2004.11362, applied to each layer alone",
    locality="strict",
    single_pass=True,
    single_view=True,
    views=lambda key, batch, class_scores: batch.image[None],
    plain_view=lambda image: image,
    score_views=lambda image: image[None],
    init_layer=init_layer,
    hand_on=lambda out, *, train, key=None: unit(out.out) * out.out[0].size ** 0.5,
    local_loss=local_loss,
    class_scores=class_scores,
  )


# %% [markdown]
# ## Training it
#
# `score_sum` adds the class scores of all layers. The rule works with any network, numerics and
# schedule, so the training function takes them as arguments; we shall use that below.

# %%
digits = data.load("digits")
images = {
  "train": jnp.asarray(digits.train.image, jnp.float32) / digits.max_value,
  "test": jnp.asarray(digits.test.image, jnp.float32) / digits.max_value,
}
labels = {"train": jnp.asarray(digits.train.label), "test": jnp.asarray(digits.test.label)}


def make(numerics="float32", schedule="simultaneous", sizes=(256, 256, 256)):
  return fflax.make_trainer(
    fflax.make_network("mlp", numerics=fflax.make_numerics(numerics), sizes=sizes),
    local_contrastive(LocalContrastiveConfig(), digits.num_classes),
    [fflax.score_sum()],
    image_shape=digits.train.image.shape[1:],
    optimizer=optax.adam(1e-3),
    schedule=fflax.make_schedule(schedule, num_layers=len(sizes), epochs_per_layer=280),
  )


def train(trainer, steps=840, batch_size=100):
  rows = data.batch_indices(jax.random.key(1), 0, steps, len(labels["train"]), batch_size)

  @jax.jit
  def run(state, rows):
    def step(state, rows):
      return trainer.step(state, fflax.Batch(images["train"][rows], labels["train"][rows]))

    return jax.lax.scan(step, state, rows)

  example = fflax.Batch(images["train"][:2], labels["train"][:2])
  return run(jax.jit(trainer.init)(jax.random.key(0), example), rows)


def accuracy(trainer, state):
  scores = jax.jit(trainer.answer)(state, images["test"]).readouts["score_sum"]
  return float(100 * jnp.mean(scores.argmax(-1) == labels["test"]))


trainer = make()
state, metrics = train(trainer)
print(
  f"{accuracy(trainer, state):.2f} % of the test images; loss of each layer, first and last step"
)
print(np.asarray(metrics["loss"])[[0, -1]].round(2))

# %% [markdown]
# ## Is it local?
#
# A rule of one's own is easily less local than it looks. So it is measured, on the step itself: row
# $i$, column $j$ says whether layer $j$ moves if only the loss of layer $i$ counts.

# %%
batch = fflax.Batch(images["test"][:50], labels["test"][:50])


@jax.jit
def moved(state, weights):
  new, _ = trainer.step(state, batch, loss_weights=weights)
  return tuple(layer.params for layer in trainer.layer_states(new))


print(fflax.locality_matrix(lambda w: moved(state, w), num_layers=3).astype(int))

# %% [markdown]
# ## What it does to the representation
#
# Cosines between 200 test images, sorted by class: of the pixels, and of what each layer emits. The
# blocks on the diagonal are the ten classes. No layer knows what the others are doing, yet each one
# begins where the one below has ended.

# %% tags=["figure"]
chosen = np.concatenate([np.flatnonzero(digits.test.label == k)[:20] for k in range(10)])
layers = jax.jit(trainer.features)(state, images["test"][chosen])
shown = {"pixels": images["test"][chosen]} | {f"layer {i + 1}": h for i, h in enumerate(layers)}

figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), dpi=72, layout="constrained")
for ax, (name, h) in zip(axes, shown.items(), strict=True):
  cosines = np.asarray(unit(h) @ unit(h).T)
  drawn = ax.imshow(cosines, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
  same = digits.test.label[chosen][:, None] == digits.test.label[chosen][None, :]
  ax.set_title(f"{name}\nwithin {cosines[same].mean():.2f}, between {cosines[~same].mean():.2f}")
  ax.set_xticks(10 + 20 * np.arange(10), range(10))
  ax.set_yticks(10 + 20 * np.arange(10), range(10))
  ax.tick_params(length=0)
figure.colorbar(drawn, ax=axes, label="cosine", shrink=0.8)
plt.show()

# %% [markdown]
# ## What came for free
#
# The rule was written without a word about arithmetic or about which layers learn when.

# %%
choices = {
  "float32, all layers at once": {},
  "bfloat16 products": {"numerics": "bfloat16"},
  "int8 products, forward and backward": {"numerics": "int8"},
  "one layer after the other": {"schedule": "greedy"},
}
for name, options in choices.items():
  other = make(**options)
  print(f"{name:36s} {accuracy(other, train(other)[0]):6.2f} %")

# %% [markdown]
# The library's conformance suite holds any rule to its contract with one call (signatures, locality,
# keys, dtypes, seeds under `vmap`, learning, checkpoints, int8); the end of
# [docs/write_your_own_rule.md](https://github.com/OWNER/fflax/blob/main/docs/write_your_own_rule.md)
# shows it, and what a rule must not do.
