"""Channel-wise FF in eager PyTorch, as one would usually write it: the rival of the benchmark.

Written anew from the recipe (A. Papachristodoulou et al., AAAI 2024, arXiv 2312.12668): four layers
of convolution, ReLU, pooling and batch norm, each with its own Adam, and a softmax head with SGD on
detached features. Needs PyTorch (`requirements-bench.txt`); only benchmarks import this module.
"""

from collections.abc import Iterable, Sequence

import numpy as np

try:
  import torch
  from torch import nn
  from torch.nn import functional
except ModuleNotFoundError as error:
  raise ModuleNotFoundError(
    "the rivals of the benchmarks need PyTorch: pip install -r requirements-bench.txt"
  ) from error


class Channelwise(nn.Module):
  """The CFSE network with its local losses; images are `[B, C, H, W]`."""

  def __init__(
    self,
    image_shape: tuple[int, int, int],
    channels: Sequence[int] = (20, 80, 240, 480),
    groups: Sequence[int] = (1, 10, 1, 10),
    pool_after: Sequence[int] = (2, 4),
    num_classes: int = 10,
  ):
    super().__init__()
    below, height, width = image_shape
    self.num_classes = num_classes
    self.layers = nn.ModuleList()
    for number, (features, g) in enumerate(zip(channels, groups, strict=True), start=1):
      parts: list[nn.Module] = [nn.Conv2d(below, features, 3, padding=1, groups=g), nn.ReLU()]
      if number in pool_after:
        parts.append(nn.MaxPool2d(2))
        height, width = height // 2, width // 2
      self.layers.append(nn.Sequential(*parts, nn.BatchNorm2d(features, eps=1e-4)))
      below = features
    self.head = nn.Linear(below * height * width, num_classes)
    self.optimizers = [torch.optim.Adam(layer.parameters(), lr=1e-2) for layer in self.layers]
    self.head_optimizer = torch.optim.SGD(self.head.parameters(), lr=1e-2)

  def train_step(self, x: torch.Tensor, label: torch.Tensor) -> list[float]:
    """One step of every layer and of the head; their losses."""
    losses = []
    for layer, optimizer in zip(self.layers, self.optimizers, strict=True):
      y = layer(x)
      goodness = y.square().reshape(len(y), self.num_classes, -1).mean(-1)
      losses.append(functional.cross_entropy(goodness, label))
      optimizer.zero_grad()
      losses[-1].backward()
      optimizer.step()
      x = y.detach()
    losses.append(functional.cross_entropy(self.head(x.flatten(1)), label))
    self.head_optimizer.zero_grad()
    losses[-1].backward()
    self.head_optimizer.step()
    return [loss.item() for loss in losses]

  def train_epoch(self, batches: Iterable[Sequence[torch.Tensor]]) -> list[float]:
    """One pass over the batches; the losses of the last."""
    self.train()
    losses: list[float] = []
    for image, label in batches:
      losses = self.train_step(image, label)
    return losses


def make_loader(
  image: np.ndarray, label: np.ndarray, batch_size: int, num_workers: int = 0
) -> torch.utils.data.DataLoader:
  """Shuffled batches of standardised `[B, C, H, W]` float32 images from `[N, H, W, C]`."""
  data = torch.utils.data.TensorDataset(
    torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2))),
    torch.from_numpy(label.astype(np.int64)),
  )
  return torch.utils.data.DataLoader(
    data, batch_size, shuffle=True, drop_last=True, num_workers=num_workers
  )
