"""One training step of each method in numpy float64, forward and backward written by hand.

Nothing here is taken from the library: every gradient is a formula of the papers or of calculus.
Parameters of one layer are a flat dict of arrays, e.g. {"kernel", "bias", "prototypes"}.
"""

from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray
Params = dict[str, Array]


def sigmoid(z: Array) -> Array:
  return 1 / (1 + np.exp(-z))


def softplus(z: Array) -> Array:
  return np.logaddexp(0, z)


def softmax(z: Array) -> Array:
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def normalize(kind: str, v: Array, eps: float) -> Array:
  """Rows of `v` `[B, D]` at unit mean square ("rms") or unit length ("l2")."""
  if kind == "none":
    return v
  square = np.mean(v**2, -1) if kind == "rms" else np.sum(v**2, -1)
  return v / np.sqrt(square + eps**2)[:, None]


def normalize_backward(kind: str, v: Array, eps: float, grad: Array) -> Array:
  """The gradient with respect to `v` from the one with respect to `normalize(v)`."""
  if kind == "none":
    return grad
  mean = np.mean if kind == "rms" else np.sum
  size = np.sqrt(mean(v**2, -1) + eps**2)[:, None]
  return grad / size - v * mean(grad * v, -1)[:, None] / size**3


class Sgd:
  """PyTorch's SGD: the decay enters the momentum."""

  def __init__(self, rate: float, momentum: float, decay: float, decayed: Sequence[str]):
    self.rate, self.momentum, self.decay, self.decayed = rate, momentum, decay, decayed
    self.velocity: Params = {}

  def __call__(self, params: Params, grads: Params) -> Params:
    new = {}
    for name, w in params.items():
      g = grads[name] + (self.decay * w if name in self.decayed else 0)
      self.velocity[name] = self.momentum * self.velocity.get(name, 0) + g
      new[name] = w - self.rate * self.velocity[name]
    return new


class Dampened(Sgd):
  """The Matlab code: v <- m v + (1 - m) g; w <- w - rate (v + decay w)."""

  def __call__(self, params: Params, grads: Params) -> Params:
    new = {}
    for name, w in params.items():
      v = self.momentum * self.velocity.get(name, 0) + (1 - self.momentum) * grads[name]
      self.velocity[name] = v
      new[name] = w - self.rate * (v + (self.decay * w if name in self.decayed else 0))
    return new


class Adam:
  """Kingma and Ba, 2015, algorithm 1."""

  def __init__(self, rate: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8):
    self.rate, self.beta1, self.beta2, self.eps = rate, beta1, beta2, eps
    self.first: Params = {}
    self.second: Params = {}
    self.count = 0

  def __call__(self, params: Params, grads: Params) -> Params:
    self.count += 1
    new = {}
    for name, w in params.items():
      g = grads[name]
      self.first[name] = self.beta1 * self.first.get(name, 0) + (1 - self.beta1) * g
      self.second[name] = self.beta2 * self.second.get(name, 0) + (1 - self.beta2) * g**2
      m = self.first[name] / (1 - self.beta1**self.count)
      v = self.second[name] / (1 - self.beta2**self.count)
      new[name] = w - self.rate * m / (np.sqrt(v) + self.eps)
    return new


def dense(params: Params, u: Array) -> tuple[Array, Array]:
  """Pre-activation and ReLU activity `[B, D]`."""
  a = u @ params["kernel"] + params["bias"]
  return a, np.maximum(a, 0)


class ForwardForward:
  """Layers that learn by Forward-Forward.

  `step` takes the two views as images with labels (not normalised) and changes `layers`, a list of
  dicts, and `means`, the running mean activities; it returns the losses and the mean goodness.
  """

  def __init__(
    self,
    layers: list[Params],
    optimizers: list[Callable[[Params, Params], Params]],
    *,
    normalization: str,
    eps: float,
    goodness: str,
    theta: float,
    loss: str = "logistic",
    alpha: float = 4.0,
    temperature: float = 1.0,
    sign: int = 1,
    peer: str = "none",
    strength: float = 0.03,
    straight_through: bool = False,
    interleaved: bool = False,
  ):
    self.layers, self.optimizers = layers, optimizers
    self.normalization, self.eps, self.kind, self.theta = normalization, eps, goodness, theta
    self.loss, self.alpha, self.temperature, self.sign = loss, alpha, temperature, sign
    self.peer, self.strength, self.straight_through = peer, strength, straight_through
    self.interleaved = interleaved
    self.means = [np.full(p["bias"].shape, 0.5) for p in layers]

  def goodness(self, h: Array) -> Array:
    return np.mean(h**2, -1) if self.kind == "mean" else np.sum(h**2, -1)

  def features(self, x: Array) -> list[Array]:
    """What each layer hands on for images with labels `[B, D]`."""
    u, handed = normalize(self.normalization, x, self.eps), []
    for params in self.layers:
      u = normalize(self.normalization, dense(params, u)[1], self.eps)
      handed.append(u)
    return handed

  def total_goodness(self, x: Array) -> list[Array]:
    u, totals = normalize(self.normalization, x, self.eps), []
    for params in self.layers:
      h = dense(params, u)[1]
      totals.append(self.goodness(h))
      u = normalize(self.normalization, h, self.eps)
    return totals

  def rows_and_slopes(self, g_pos: Array, g_neg: Array, width: int) -> tuple[Array, Array, Array]:
    """Loss of every pair and its derivatives with respect to both goodnesses."""
    if self.loss == "logistic":
      cut = self.theta if self.kind == "mean" else self.theta * width
      z_pos = self.sign * (g_pos - cut) / self.temperature
      z_neg = self.sign * (g_neg - cut) / self.temperature
      slope = self.sign / self.temperature / 2
      rows = (softplus(-z_pos) + softplus(z_neg)) / 2
      return rows, -slope * sigmoid(-z_pos), slope * sigmoid(z_neg)
    t = -self.alpha * (g_pos - g_neg)
    if self.loss == "symba":
      rows, slope = softplus(t), sigmoid(t)
    else:
      rows, slope = t * sigmoid(t), sigmoid(t) + t * sigmoid(t) * (1 - sigmoid(t))
    return rows, -self.alpha * slope, self.alpha * slope

  def step(self, x_pos: Array, x_neg: Array) -> tuple[list[float], list[float], list[float]]:
    u_pos, u_neg = (normalize(self.normalization, x, self.eps) for x in (x_pos, x_neg))
    losses, g_pos_means, g_neg_means = [], [], []
    for i, params in enumerate(self.layers):
      a_pos, h_pos = dense(params, u_pos)
      _, h_neg = dense(params, u_neg)
      rows_count, width = h_pos.shape
      g_pos, g_neg = self.goodness(h_pos), self.goodness(h_neg)
      rows, d_pos, d_neg = self.rows_and_slopes(g_pos, g_neg, width)
      per_unit = 2 / width if self.kind == "mean" else 2
      signal_pos = d_pos[:, None] / rows_count * per_unit * h_pos
      signal_neg = d_neg[:, None] / rows_count * per_unit * h_neg
      loss = rows.mean()
      if self.peer != "none":
        mean = 0.9 * self.means[i] + 0.1 * h_pos.mean(0)
        self.means[i] = mean
        if self.peer == "signal":
          signal_pos = signal_pos - self.strength * (mean.mean() - mean) / rows_count
        else:
          loss += self.strength * np.mean((mean.mean() - mean) ** 2)
          slope = 2 * self.strength / width * (mean - mean.mean()) * 0.1 / rows_count
          signal_pos = signal_pos + slope * (1 if self.straight_through else a_pos > 0)
      grads = {
        "kernel": u_pos.T @ signal_pos + u_neg.T @ signal_neg,
        "bias": signal_pos.sum(0) + signal_neg.sum(0),
      }
      new = self.optimizers[i](params, grads)
      self.layers[i] = new
      if self.interleaved:
        h_pos, h_neg = dense(new, u_pos)[1], dense(new, u_neg)[1]
      u_pos, u_neg = (normalize(self.normalization, h, self.eps) for h in (h_pos, h_neg))
      losses.append(loss)
      g_pos_means.append(g_pos.mean())
      g_neg_means.append(g_neg.mean())
    return losses, g_pos_means, g_neg_means


def length(v: Array) -> Array:
  """`[..., 1]`; the floor keeps a zero row at zero."""
  return np.sqrt(np.sum(v**2, -1, keepdims=True) + 1e-12)


def unit(v: Array) -> Array:
  return v / length(v)


def prototype_scores(z: Array, p: Array, pooling: float) -> Array:
  """Class scores `[B, K]` of features `[B, D]` and prototypes `[K, M, D]`."""
  s = np.einsum("bd,kmd->bkm", unit(z), unit(p))
  return np.log(np.mean(np.exp(pooling * s), -1)) / pooling


def prototype_backward(z: Array, p: Array, pooling: float, d: Array) -> tuple[Array, Array]:
  """Gradients with respect to `z` and `p` from `d` `[B, K]`, the one with respect to the scores."""
  zh, ph = unit(z), unit(p)
  s = np.einsum("bd,kmd->bkm", zh, ph)
  weight = d[:, :, None] * softmax(pooling * s)
  through = np.einsum("bkm,kmd->bd", weight, ph)
  dz = (through - zh * np.sum(zh * through, -1, keepdims=True)) / length(z)
  dp = np.einsum("bkm,bd->kmd", weight, zh) - ph * np.sum(weight * s, 0)[..., None]
  return dz, dp / length(p)


class Hyperspherical:
  """Dense layers that learn by prototypes; "prototypes" is in `layers`, trained or not."""

  def __init__(
    self,
    layers: list[Params],
    optimizers: list[Callable[[Params, Params], Params]],
    *,
    scale: float,
    margin: float,
    pooling: float,
    loss: str,
    mode: str,
    decay: float,
    normalization: str,
    eps: float,
    rate: float = 0.0,
  ):
    self.layers, self.optimizers = layers, optimizers
    self.scale, self.margin, self.pooling = scale, margin, pooling
    self.loss, self.mode, self.decay, self.rate = loss, mode, decay, rate
    self.normalization, self.eps = normalization, eps

  def scores(self, x: Array) -> list[Array]:
    u, scores = normalize(self.normalization, x, self.eps), []
    for params in self.layers:
      h = dense(params, u)[1]
      z = h - params.get("mean", 0)
      scores.append(prototype_scores(z, params["prototypes"], self.pooling))
      u = normalize(self.normalization, h, self.eps)
    return scores

  def rows_and_slopes(self, scores: Array, label: Array) -> tuple[Array, Array]:
    rows, classes = scores.shape
    own = np.eye(classes)[label]
    if self.loss == "smooth":
      logits = self.scale * (scores - self.margin * own)
      q = softmax(logits)
      return -np.log(np.sum(q * own, -1)), self.scale * (q - own) / rows
    others = np.where(own == 1, -np.inf, scores)
    gap = self.margin - scores[np.arange(rows), label] + others.max(-1)
    rival = np.eye(classes)[others.argmax(-1)]
    return np.maximum(gap, 0), (gap > 0)[:, None] * (rival - own) / rows

  def moving_average(self, p: Array, z: Array, label: Array) -> Array:
    new, zh = p.copy(), unit(z)
    nearest = np.argmax(np.einsum("bd,bmd->bm", zh, unit(p)[label]), -1)
    for c in range(p.shape[0]):
      for m in range(p.shape[1]):
        mine = (label == c) & (nearest == m)
        if mine.any():
          new[c, m] = unit(self.decay * unit(p[c, m]) + (1 - self.decay) * zh[mine].mean(0))
    return new

  def step(self, x: Array, label: Array) -> list[float]:
    u, losses = normalize(self.normalization, x, self.eps), []
    for i, params in enumerate(self.layers):
      p = params["prototypes"]
      a, h = dense(params, u)
      z = h - params.get("mean", 0)
      rows, d = self.rows_and_slopes(prototype_scores(z, p, self.pooling), label)
      dz, dp = prototype_backward(z, p, self.pooling, d)
      da = dz * (a > 0)
      grads = {"kernel": u.T @ da, "bias": da.sum(0)}
      trained = {k: params[k] for k in grads}
      if self.mode == "learned":
        grads["prototypes"], trained["prototypes"] = dp, p
      new = {"prototypes": p, **self.optimizers[i](trained, grads)}
      if self.mode.startswith("ema"):
        new["prototypes"] = self.moving_average(p, z, label)
      if "mean" in params:
        new["mean"] = (1 - self.rate) * params["mean"] + self.rate * h.mean(0)
      self.layers[i] = new
      losses.append(rows.mean())
      u = normalize(self.normalization, h, self.eps)
    return losses


class Backprop:
  """End-to-end gradients; a layer with "head_kernel" and "head_bias" has a softmax loss."""

  def __init__(
    self,
    layers: list[Params],
    optimizers: list[Callable[[Params, Params], Params]],
    *,
    normalization: str,
    eps: float,
    smoothing: float,
  ):
    self.layers, self.optimizers = layers, optimizers
    self.normalization, self.eps, self.smoothing = normalization, eps, smoothing

  def forward(self, x: Array) -> tuple[list[Array], list[Array], list[Array], list[Array | None]]:
    """Inputs, pre-activations, activities and logits of every layer."""
    u = normalize(self.normalization, x, self.eps)
    inputs, pre, acts, logits = [], [], [], []
    for params in self.layers:
      a, h = dense(params, u)
      inputs.append(u)
      pre.append(a)
      acts.append(h)
      has_head = "head_kernel" in params
      logits.append(h @ params["head_kernel"] + params["head_bias"] if has_head else None)
      u = normalize(self.normalization, h, self.eps)
    return inputs, pre, acts, logits

  def step(self, x: Array, label: Array) -> list[float]:
    inputs, pre, acts, logits = self.forward(x)
    above = np.zeros_like(acts[-1])  # the gradient that comes down to this layer's activity
    losses = []
    for i in reversed(range(len(self.layers))):
      params, grads, dh = self.layers[i], {}, above
      losses.insert(0, 0.0)
      if logits[i] is not None:
        classes = logits[i].shape[1]
        target = (1 - self.smoothing) * np.eye(classes)[label] + self.smoothing / classes
        q = softmax(logits[i])
        losses[0] = -np.mean(np.sum(target * np.log(q), -1))
        d = (q - target) / len(x)
        grads = {"head_kernel": acts[i].T @ d, "head_bias": d.sum(0)}
        dh = dh + d @ params["head_kernel"].T
      da = dh * (pre[i] > 0)
      grads |= {"kernel": inputs[i].T @ da, "bias": da.sum(0)}
      if i > 0:
        below = da @ params["kernel"].T
        above = normalize_backward(self.normalization, acts[i - 1], self.eps, below)
      self.layers[i] = self.optimizers[i](params, grads)
    return losses
