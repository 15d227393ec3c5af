"""PyTorch rivals: the `loewex` recipe as one would usually write it, and steps to compare with.

The recipe (G. Hinton, 2022, arXiv 2212.13345, as in the public re-implementation
loeweX/Forward-Forward, written anew from its specification): eager nn.Module, float32, one SGD over
all parameters, a map-style data set that makes the three views of an item, and a DataLoader.
Written to be fast in that usual form, not to lose: images are converted to float once, not per
item; positive and negative views share one product; the neutral view runs without a graph.

Needs PyTorch (`requirements-bench.txt`); only benchmarks import this module, and inside functions.
"""

import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

try:
  import torch
  from torch import nn
  from torch.nn import functional
except ModuleNotFoundError as error:
  raise ModuleNotFoundError(
    "the rivals of the benchmarks need PyTorch: pip install -r requirements-bench.txt"
  ) from error

# Worker processes of the DataLoader unless a benchmark asks `fastest_num_workers`.
NUM_WORKERS = 2
EPS = 1e-8


class StraightThroughReLU(torch.autograd.Function):
  """ReLU whose gradient is the identity, so that the peer term reaches dead units."""

  @staticmethod
  def forward(ctx, x):
    return x.clamp(min=0)

  @staticmethod
  def backward(ctx, gradient):
    return gradient


def rms_normalize(x: torch.Tensor, eps: float = EPS) -> torch.Tensor:
  return x / (x.square().mean(dim=-1, keepdim=True).sqrt() + eps)


class Views(torch.utils.data.Dataset):
  """Item i: positive, negative, neutral view `[D]` float32, and the label.

  The label's one-hot code stands over the first K pixels: the true label, a uniformly drawn wrong
  one, or 1/K everywhere.
  """

  def __init__(self, image: np.ndarray, label: np.ndarray, num_classes: int = 10):
    self.image = torch.from_numpy(image.reshape(len(image), -1).astype(np.float32) / 255)
    self.label = torch.from_numpy(label.astype(np.int64))
    self.codes = torch.eye(num_classes)
    self.neutral = torch.full((num_classes,), 1 / num_classes)

  def __len__(self) -> int:
    return len(self.image)

  def _view(self, index: int, code: torch.Tensor) -> torch.Tensor:
    x = self.image[index].clone()
    x[: len(code)] = code
    return x

  def __getitem__(self, index: int):
    label = self.label[index]
    classes = len(self.codes)
    wrong = (label + torch.randint(1, classes, ())) % classes
    return (
      self._view(index, self.codes[label]),
      self._view(index, self.codes[wrong]),
      self._view(index, self.neutral),
      label,
    )


def make_loader(
  image: np.ndarray,
  label: np.ndarray,
  *,
  batch_size: int = 100,
  num_classes: int = 10,
  num_workers: int = NUM_WORKERS,
) -> torch.utils.data.DataLoader:
  """The usual loader over uint8 images `[N, ...]`: shuffled, the last short batch dropped."""
  return torch.utils.data.DataLoader(
    Views(image, label, num_classes),
    batch_size=batch_size,
    shuffle=True,
    drop_last=True,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
  )


class Loewex(nn.Module):
  """An MLP trained by Forward-Forward, with its linear readout and its optimiser.

  Sum goodness against theta = width; peer normalisation in its loss form on running means of the
  positive view; the readout reads the normalised activities of layers 2, 3, ... (neutral view).
  """

  def __init__(
    self,
    widths: Sequence[int] = (784, 1000, 1000, 1000),
    num_classes: int = 10,
    *,
    learning_rate: float = 1e-3,
    weight_decay: float = 3e-4,
    readout_learning_rate: float = 1e-2,
    readout_weight_decay: float = 3e-3,
    momentum: float = 0.9,
    peer: float = 0.03,
    peer_momentum: float = 0.9,
  ):
    super().__init__()
    self.layers = nn.ModuleList(nn.Linear(d, n) for d, n in itertools.pairwise(widths))
    for layer in self.layers:
      nn.init.normal_(layer.weight, std=layer.out_features**-0.5)
      nn.init.zeros_(layer.bias)
    self.readout = nn.Linear(sum(widths[2:]), num_classes, bias=False)
    nn.init.zeros_(self.readout.weight)
    self.means = [torch.full((n,), 0.5) for n in widths[1:]]
    self.peer = peer
    self.peer_momentum = peer_momentum
    self.rates = (learning_rate, readout_learning_rate)
    self.optimizer = torch.optim.SGD(
      [
        {"params": self.layers.parameters(), "weight_decay": weight_decay},
        {
          "params": self.readout.parameters(),
          "weight_decay": readout_weight_decay,
          "lr": readout_learning_rate,
        },
      ],
      lr=learning_rate,
      momentum=momentum,
    )

  def _peer_loss(self, index: int, positive: torch.Tensor) -> torch.Tensor:
    mean = self.peer_momentum * self.means[index] + (1 - self.peer_momentum) * positive.mean(dim=0)
    self.means[index] = mean.detach()
    return (mean.mean() - mean).square().mean()

  def layer_losses(self, positive: torch.Tensor, negative: torch.Tensor) -> list[torch.Tensor]:
    """The local loss of each layer for views `[B, D]`; no gradient crosses a layer boundary."""
    rows = len(positive)
    sign = torch.ones(2 * rows, dtype=positive.dtype)
    sign[rows:] = -1
    x = rms_normalize(torch.cat([positive, negative]))
    losses = []
    for index, layer in enumerate(self.layers):
      h = StraightThroughReLU.apply(layer(x))
      logit = h.square().sum(dim=-1) - h.shape[-1]
      loss = functional.softplus(-sign * logit).mean()
      losses.append(loss + self.peer * self._peer_loss(index, h[:rows]))
      x = rms_normalize(h.detach())
    return losses

  def logits(self, neutral: torch.Tensor) -> torch.Tensor:
    """`[B, K]` of the readout; the layers are not reached by its gradient."""
    with torch.no_grad():
      x = rms_normalize(neutral)
      features = []
      for layer in self.layers:
        x = rms_normalize(functional.relu(layer(x)))
        features.append(x)
      joined = torch.cat(features[1:], dim=-1)
    return self.readout(joined)

  def train_step(self, positive, negative, neutral, label) -> torch.Tensor:
    """One update of everything; returns the L layer losses and the readout's, `[L + 1]`."""
    losses = self.layer_losses(positive, negative)
    losses.append(functional.cross_entropy(self.logits(neutral), label))
    self.optimizer.zero_grad()
    total = torch.stack(losses)
    total.sum().backward()
    self.optimizer.step()
    return total.detach()

  def set_epoch(self, epoch: int, epochs: int) -> None:
    """The linear cool-down after half of `epochs`, with `epoch` counted from 0."""
    gain = 1.0 if epoch <= epochs // 2 else 2 * (1 + epochs - epoch) / epochs
    for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
      group["lr"] = gain * rate


def make_loewex(
  widths: Sequence[int] = (784, 1000, 1000, 1000), num_classes: int = 10, *, seed: int = 42
) -> Loewex:
  """The model of preset `loewex`, its optimiser inside."""
  torch.manual_seed(seed)
  return Loewex(widths, num_classes)


def train_epoch(
  model: Loewex, loader: torch.utils.data.DataLoader, epoch: int = 0, epochs: int = 100
) -> np.ndarray:
  """One epoch; returns the mean losses of the layers and of the readout, `[L + 1]`."""
  model.set_epoch(epoch, epochs)
  total = torch.zeros(len(model.layers) + 1)
  for positive, negative, neutral, label in loader:
    total += model.train_step(positive, negative, neutral, label)
  return (total / len(loader)).numpy()


def fastest_num_workers(
  image: np.ndarray,
  label: np.ndarray,
  *,
  candidates: Sequence[int] = (0, 1, 2),
  num_examples: int = 5000,
  rounds: int = 3,
) -> tuple[int, dict[int, float]]:
  """Which `num_workers` is fastest here, so that the rival runs with its best.

  Measured, because it depends on the cores: workers overlap with the products, but take threads
  from them. Candidates take turns on the first `num_examples`, the workers already started.

  Returns:
    The fastest candidate, and the seconds of each one's best round.
  """
  model = make_loewex((image[0].size, 1000, 1000, 1000))
  image, label = image[:num_examples], label[:num_examples]
  loaders = {n: make_loader(image, label, num_workers=n) for n in candidates}
  seconds = dict.fromkeys(candidates, float("inf"))
  for round_ in range(rounds + 1):
    for n, loader in loaders.items():
      start = time.perf_counter()
      train_epoch(model, loader)
      if round_ > 0:  # the first one starts the workers
        seconds[n] = min(seconds[n], time.perf_counter() - start)
  return min(seconds, key=seconds.__getitem__), seconds


def readout_error_percent(model: Loewex, image: np.ndarray, label: np.ndarray) -> float:
  """Error of the one-pass readout on uint8 images `[N, ...]`."""
  x = torch.from_numpy(image.reshape(len(image), -1).astype(np.float32) / 255)
  classes = model.readout.out_features
  x[:, :classes] = 1 / classes
  with torch.no_grad():
    answer = torch.cat([model.logits(rows) for rows in x.split(1000)]).argmax(dim=-1)
  return 100 * float((answer != torch.from_numpy(label.astype(np.int64))).double().mean())


class Weights(NamedTuple):
  """Weights that a single step takes and gives, in numpy; kernels are `[in, out]`.

  Attributes:
    kernels, biases: of the layers, `[D_in, D]` and `[D]`.
    extras: FF: the readout's kernel `[D, K]` of layers 2, 3, ...; HFF: the prototypes `[K, M, D]`
      of every layer; BP: the head's kernel `[D, K]` and bias `[K]`.
    means: FF: the running mean activities `[D]` of every layer; else empty.
  """

  kernels: Sequence[np.ndarray]
  biases: Sequence[np.ndarray]
  extras: Sequence[np.ndarray]
  means: Sequence[np.ndarray] = ()


def _arrays(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
  return [tensor.detach().numpy().copy() for tensor in tensors]


def _trainable(arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
  return [torch.tensor(array, requires_grad=True) for array in arrays]


def ff_step(
  weights: Weights,
  positive: np.ndarray,
  negative: np.ndarray,
  neutral: np.ndarray,
  label: np.ndarray,
  *,
  steps: int = 1,
  **options: float,
) -> tuple[Weights, np.ndarray]:
  """`steps` updates of the `loewex` recipe on one batch, by the code that the benchmark times.

  Views are `[B, D]` in [0, 1] with the label's code in place; the dtype of the kernels is used
  throughout. `options` are those of `Loewex`. Momenta start at zero.

  Returns:
    The new weights, and the losses `[L + 1]` of the last step, before its update.
  """
  widths = [weights.kernels[0].shape[0], *(kernel.shape[1] for kernel in weights.kernels)]
  model = Loewex(widths, weights.extras[0].shape[1], **options)
  model.to(torch.from_numpy(weights.kernels[0]).dtype)
  with torch.no_grad():
    for layer, kernel, bias in zip(model.layers, weights.kernels, weights.biases, strict=True):
      layer.weight.copy_(torch.from_numpy(kernel).T)
      layer.bias.copy_(torch.from_numpy(bias))
    model.readout.weight.copy_(torch.from_numpy(np.concatenate(weights.extras)).T)
  model.means = [torch.tensor(mean) for mean in weights.means]
  batch = [torch.from_numpy(a) for a in (positive, negative, neutral, label.astype(np.int64))]
  for _ in range(steps):
    losses = model.train_step(*batch)
  new = Weights(
    _arrays([layer.weight.T for layer in model.layers]),
    _arrays([layer.bias for layer in model.layers]),
    _arrays(model.readout.weight.T.split(widths[2:])),
    _arrays(model.means),
  )
  return new, losses.numpy()


def hff_step(
  weights: Weights,
  image: np.ndarray,
  label: np.ndarray,
  *,
  scale: float = 10.0,
  pooling: float = 10.0,
  margin: float = 0.0,
  learning_rate: float = 0.1,
  momentum: float = 0.9,
  steps: int = 1,
) -> tuple[Weights, np.ndarray]:
  """`steps` SGD updates of hyperspherical FF (arXiv 2605.00082) with dense layers, on one batch.

  Every layer's loss is the cross-entropy of `scale (S_c - margin [c = y])`, with S_c the
  logsumexp-pooled cosines of its features with the prototypes of class c.

  Returns:
    The new weights, and the layers' losses `[L]` of the last step, before its update.
  """
  kernels, biases = _trainable(weights.kernels), _trainable(weights.biases)
  prototypes = _trainable(weights.extras)
  optimizer = torch.optim.SGD([*kernels, *biases, *prototypes], lr=learning_rate, momentum=momentum)
  target = torch.from_numpy(label.astype(np.int64))
  for _ in range(steps):
    h = torch.from_numpy(image.reshape(len(image), -1))
    losses = []
    for kernel, bias, p in zip(kernels, biases, prototypes, strict=True):
      h = functional.relu(rms_normalize(h.detach()) @ kernel + bias)
      cosines = torch.einsum(
        "bd,kmd->bkm", functional.normalize(h, dim=-1), functional.normalize(p, dim=-1)
      )
      scores = (torch.logsumexp(pooling * cosines, dim=-1) - np.log(p.shape[1])) / pooling
      own = functional.one_hot(target, p.shape[0]).to(h.dtype)
      losses.append(functional.cross_entropy(scale * (scores - margin * own), target))
    optimizer.zero_grad()
    torch.stack(losses).sum().backward()
    optimizer.step()
  new = Weights(_arrays(kernels), _arrays(biases), _arrays(prototypes))
  return new, torch.stack(losses).detach().numpy()


def bp_step(
  weights: Weights,
  image: np.ndarray,
  label: np.ndarray,
  *,
  learning_rate: float = 0.1,
  momentum: float = 0.9,
  steps: int = 1,
) -> tuple[Weights, np.ndarray]:
  """`steps` SGD updates of a ReLU MLP with one softmax head by backpropagation, on one batch.

  Returns:
    The new weights, and the loss `[1]` of the last step, before its update.
  """
  kernels, biases = _trainable(weights.kernels), _trainable(weights.biases)
  head = _trainable(weights.extras)
  optimizer = torch.optim.SGD([*kernels, *biases, *head], lr=learning_rate, momentum=momentum)
  target = torch.from_numpy(label.astype(np.int64))
  for _ in range(steps):
    h = torch.from_numpy(image.reshape(len(image), -1))
    for kernel, bias in zip(kernels, biases, strict=True):
      h = functional.relu(h @ kernel + bias)
    loss = functional.cross_entropy(h @ head[0] + head[1], target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
  new = Weights(_arrays(kernels), _arrays(biases), _arrays(head))
  return new, loss.detach().numpy()[None]
