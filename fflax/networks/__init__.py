"""flax.linen layers used as pure functions, and the networks made of them."""

from fflax.networks.activations import ACTIVATIONS, get_activation
from fflax.networks.initializers import INITIALIZERS, Initializer, get_initializer
from fflax.networks.layers import ConvLayer, DenseLayer, LocalLayer, aux_conv_layer, from_linen
from fflax.networks.registry import NETWORKS, LayerRow, describe, make_network, network_options

__all__ = [
  "ACTIVATIONS",
  "INITIALIZERS",
  "NETWORKS",
  "ConvLayer",
  "DenseLayer",
  "Initializer",
  "LayerRow",
  "LocalLayer",
  "aux_conv_layer",
  "describe",
  "from_linen",
  "get_activation",
  "get_initializer",
  "make_network",
  "network_options",
]
