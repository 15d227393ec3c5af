"""The table of numerics: what each entry makes is a product of two arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core.numerics_registry import NUMERICS

STATEFUL = ("int8_ui8", "int8_dai8", "int8_gdai8_approximation")


@pytest.mark.parametrize("name", NUMERICS)
def test_entry(name):
  a, b = NUMERICS[name](), NUMERICS[name]()
  assert a.name == name and a == b and hash(a.dot_general) == hash(b.dot_general)
  x = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
  got = a.dot_general(x, x, (((1,), (0,)), ((), ())))
  np.testing.assert_allclose(got, [[7, 10], [15, 22]], atol=0.2)
  assert a.takes_key == name.startswith("int8")
  assert (a.gradient_state is None) == (name not in STATEFUL)


def test_names():
  assert list(NUMERICS) == [
    *("float32", "bfloat16", "int8", "int8_nearest"),
    *("int8_ui8", "int8_dai8", "int8_gdai8_approximation", "int8_counts"),
  ]
