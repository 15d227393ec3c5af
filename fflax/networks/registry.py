"""Networks by name, and what is inside them."""

import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fflax.core.labels import with_carried
from fflax.core.numerics import Numerics
from fflax.core.pbit_config import PbitConfig
from fflax.networks.activations import Activation, get_activation
from fflax.networks.architectures import (
  NetworkFactory,
  hff_cnn,
  local_mlp,
  mlp,
  small_cnn,
  vgg8,
  vgg11,
)
from fflax.networks.cfse import cfse
from fflax.networks.initializers import Initializer, get_initializer
from fflax.networks.mobilenet import efficientnet_b0, mobilenet_v2
from fflax.networks.resnet import resnet18
from fflax.networks.vit import vit
from fflax.types import Network

NETWORKS: Mapping[str, NetworkFactory] = MappingProxyType(
  {
    "mlp": mlp,
    "small_cnn": small_cnn,
    "hff_cnn": hff_cnn,
    "vgg8": vgg8,
    "vgg11": vgg11,
    "local_mlp": local_mlp,
    "resnet18": resnet18,
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_b0": efficientnet_b0,
    "vit": vit,
    "cfse": cfse,
  }
)
"""Network factories by name."""

_SHARED = ("numerics", "activation", "initializer")


def network_options(name: str) -> dict[str, Any]:
  """The network's own options and their defaults.

  Raises:
    ValueError: if no network has that name.
  """
  if name not in NETWORKS:
    raise ValueError(f"Unknown network {name!r}; allowed: {', '.join(NETWORKS)}.")
  parameters = inspect.signature(NETWORKS[name]).parameters
  return {key: p.default for key, p in parameters.items() if key not in _SHARED}


def make_network(
  name: str,
  *,
  numerics: Numerics,
  activation: str | Activation = "relu",
  kernel_init: str | Initializer = "lecun_normal",
  pbits: PbitConfig | None = None,
  **options: Any,
) -> Network:
  """Makes a network from its name. Equal arguments give layers with equal specs.

  Args:
    name: in `NETWORKS`.
    numerics: how its layers multiply.
    activation: in `ACTIVATIONS`, or an elementwise function.
    kernel_init: in `INITIALIZERS`, or an `Initializer`.
    pbits: settings of activation "pbits".
    **options: of the network, see `network_options`.

  Returns:
    The network, without any head.

  Raises:
    ValueError: if a name or an option is unknown, or if a size is impossible.

  Example:
    >>> from fflax.core.numerics import float32
    >>> network = make_network("mlp", numerics=float32(), sizes=(32, 16))
    >>> [(row.name, row.num_parameters) for row in describe(network, (8, 8, 1))]
    [('dense_1', 2080), ('dense_2', 528)]
  """
  allowed = network_options(name)
  unknown = sorted(set(options) - set(allowed))
  if unknown:
    raise ValueError(
      f"Unknown option {', '.join(map(repr, unknown))} of network {name!r}; "
      f"allowed: {', '.join(allowed)}."
    )
  network = NETWORKS[name](
    numerics=numerics,
    activation=get_activation(activation, pbits),
    initializer=get_initializer(kernel_init),
    **options,
  )
  own_stats = options.get("norm_groups", 1)
  return network._replace(groups=math.lcm(own_stats, numerics.groups), stat_groups=own_stats)


class LayerRow(NamedTuple):
  """One layer of a network in a table.

  Attributes:
    name: of the layer.
    output_shape: of what it emits for one example, without the batch axis.
    num_parameters: trained numbers in it.
  """

  name: str
  output_shape: tuple[int, ...]
  num_parameters: int


def describe(network: Network, example_shape: Sequence[int]) -> tuple[LayerRow, ...]:
  """What each layer emits and holds. Nothing is computed, only shapes.

  Args:
    network: any network.
    example_shape: of one example, without the batch axis: `[H, W, C]` or `[D]`.

  Returns:
    One row for each layer.

  Raises:
    ValueError: if the network cannot take examples of that shape.
  """
  x = jax.ShapeDtypeStruct((1, *example_shape), jnp.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  rows = []
  for layer in network.layers:
    params, stats = jax.eval_shape(layer.init, key, x)
    out, _ = jax.eval_shape(functools.partial(layer.apply, train=False), params, stats, x)
    x = jax.eval_shape(with_carried, out.out, out.carried)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    rows.append(LayerRow(layer.name, tuple(out.out.shape[1:]), size))
  return tuple(rows)
