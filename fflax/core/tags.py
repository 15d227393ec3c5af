"""Names that a trace carries for what arrays cannot say: which products read counts, what is drawn.

`fflax.analysis` reads them; they change no number. A name survives differentiation and `jit`.
"""

import contextlib

import jax

PRODUCT = "fflax.product:"
"""What the name of a product's scope starts with; its kind follows."""

COUNTS = "fflax.counts:"
"""What the name of a scope starts with whose products read or make counts, see `counts`."""

SAMPLES = "fflax.pbits"
"""The scope in which stochastic bits are drawn: each comparison there is one sample."""


def counts(reads: int, emits: int = 0) -> contextlib.AbstractContextManager:
  """The scope of products whose left operand are counts up to `reads`: index additions.

  An affine map of the counts, of each channel or of each example, is no obstacle: batch norm is
  absorbed into the weights and a bias map, and a norm of the example is a factor of the result. The
  product is then one of the counts still, and the map is counted apart, where it is computed.

  Args:
    reads: M; 0 if the left operand is real.
    emits: M of the p-bits that stand behind the product, so that its result is stored as counts; 0
      if it is stored as it is.
  """
  if not reads and not emits:
    return contextlib.nullcontext()
  return jax.named_scope(f"{COUNTS}{reads}:{emits}")
