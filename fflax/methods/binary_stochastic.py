"""Binary stochastic Forward-Forward (BSFF, BGBSFF): R. Jaiswal et al., 2025, arXiv 2507.06461.

Channel-wise FF whose units are p-bits (activation "pbits"): on or off at random, several of them
with one pre-activation. A layer minimises the mean surprisal of the true class under a softmax over
its blocks' goodness, an upper bound (Jensen) of the negative log of its expected probability.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jax import lax

from fflax.core import losses
from fflax.core.numerics import Numerics
from fflax.core.pbit_config import Estimator
from fflax.methods.channelwise import ChannelwiseConfig, channelwise, compete, competition_metrics
from fflax.types import Array, Key, LayerOut, Method, Metrics, PyTree

ERRORS = ("exact", "binary", "reinforce", "reinforce_baseline")

ESTIMATORS: Mapping[str, tuple[Estimator, str]] = MappingProxyType(
  {
    "surprisal": ("surprisal", "exact"),  # BSFF
    "binary_slope": ("binary_slope", "exact"),  # BGBSFF, in our reading
    "binary_error": ("surprisal", "binary"),
    "binary": ("binary_slope", "binary"),
    "ste_autodiff": ("ste_autodiff", "exact"),
    "ste_identity": ("ste_identity", "exact"),
    "reinforce": ("score", "reinforce"),
    "reinforce_baseline": ("score", "reinforce_baseline"),
  }
)
"""Estimators of the gradient by name: `PbitConfig.estimator` of the units, `error` of the loss."""


@dataclasses.dataclass(frozen=True)
class BinaryStochasticConfig:
  """Hyper-parameters of binary stochastic FF; the paper's equations are not public.

  Attributes:
    error: the gradient of the surprisal with respect to the goodness: "exact" (softmax minus
      one-hot), "binary" (a class drawn from the softmax in its place: entries of -1, 0 and 1, with
      the same mean), or none, with the score-function estimator in its place: "reinforce", and
      "reinforce_baseline" with the batch's mean surprisal as baseline (its own among them, which
      shortens the mean by 1 / B). What the units make of it
      is `PbitConfig.estimator`; `ESTIMATORS` has the pairs by name.
    competing: as in channel-wise FF.
    class_groups: as in channel-wise FF.
  """

  error: str = "exact"
  competing: tuple[int, ...] = ()
  class_groups: tuple[int, ...] = ()

  def check(self) -> None:
    """Raises ValueError with one sentence if a choice is unknown."""
    if self.error not in ERRORS:
      raise ValueError(f"binary_stochastic error must be one of {ERRORS}, not {self.error!r}")


def _pull(slope: Array, x: Array) -> Array:
  """Zero, with gradient `slope` with respect to `x`."""
  return jnp.sum(lax.stop_gradient(slope) * (x - lax.stop_gradient(x)))


def binary_stochastic(
  config: BinaryStochasticConfig, num_classes: int, numerics: Numerics | None = None
) -> Method:
  """Binary stochastic FF as a `Method`: channel-wise FF's, with estimators of the gradient.

  Any activation may stand in the layers; "reinforce" needs one that draws. Whether the loss sees
  the counts before or after batch norm is the network's choice (`loss_input` of "cfse").
  Locality: strict; one pass, of which the readout may average several (`samples`).

  Deviations: a reconstruction; which of the paper's terms are binary is not known. Batch-norm
  statistics and the softmax head as in channel-wise FF.

  Raises:
    ValueError: see `BinaryStochasticConfig.check` and `ChannelwiseConfig.check`.
  """
  config.check()
  base = channelwise(
    ChannelwiseConfig(competing=config.competing, class_groups=config.class_groups),
    num_classes,
    numerics,
  )

  def local_loss(
    params: PyTree, stats: PyTree, out: LayerOut, label: Array, context: PyTree, key: Key
  ) -> tuple[Array, tuple[PyTree, Metrics]]:
    del params, context
    g, label = compete(stats, out, label, num_classes)
    surprisal = losses.cross_entropy(g, label)
    loss, size = jnp.mean(surprisal), len(label)
    if config.error == "binary":
      onehot = lambda y: jax.nn.one_hot(y, g.shape[1])  # noqa: E731
      drawn = jax.random.categorical(key, lax.stop_gradient(g))
      loss = lax.stop_gradient(loss) + _pull((onehot(drawn) - onehot(label)) / size, g)
    elif config.error != "exact":
      if out.log_prob is None:
        raise ValueError(
          f"binary_stochastic error {config.error!r} needs the log-probability of all units that "
          "a layer draws: activation 'pbits' with estimator 'score', on a network of plain layers"
        )
      baseline = loss if config.error == "reinforce_baseline" else 0.0
      # The units pass no gradient of the surprisal on, but a norm above them does learn by it.
      loss = loss + _pull((surprisal - baseline) / size, out.log_prob[0])
    return loss, (stats, competition_metrics(g, label))

  return base._replace(
    name="binary_stochastic",
    paper="R. Jaiswal, S. Datta, J. G. Makin, 2025, arXiv 2507.06461",
    local_loss=local_loss,
  )
