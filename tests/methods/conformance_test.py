"""Every registered method under the conformance suite, and planted faults that it must find."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

pytest.register_assert_rewrite("tests.methods.conformance")

from fflax.methods.forward_forward import ForwardForwardConfig, forward_forward  # noqa: E402
from fflax.methods.registry import METHODS  # noqa: E402
from tests.methods import conformance  # noqa: E402

_ON_NETWORKS = [(case, network) for case in conformance.CASES for network in case.accuracy]


@pytest.mark.parametrize(
  ("case", "network"), _ON_NETWORKS, ids=[f"{c.method}-{c.what}-{n}" for c, n in _ON_NETWORKS]
)
def test_conformance(case, network):
  """All checks of one case in one test: they share its compiled programs."""
  conformance.run(case, network)


def test_every_method_has_a_case():
  """A registered method without a line in the table would be held to nothing."""
  assert {case.method for case in conformance.CASES} == set(METHODS)


# --- planted faults -------------------------------------------------------------------------------

_METHOD = forward_forward(ForwardForwardConfig(), conformance.NUM_CLASSES)


def weak_statistics(key, out, place):
  """A Python number makes a weakly typed array, which the first update makes a strong one."""
  return {}, {"mean": jnp.full(out.act.shape[-1:], 0.5)}


def moving_mean(params, stats, out, label, context, key):
  loss, (_, metrics) = _METHOD.local_loss(params, {}, out, label, context, key)
  mean = 0.9 * stats["mean"] + 0.1 * jnp.mean(out.act, axis=(0, 1))
  return loss, ({"mean": mean}, metrics)


def batch_scores(params, stats, out):
  """Class scores that are compared over the batch."""
  scores = _METHOD.class_scores(params, stats, out)
  return scores - jnp.mean(scores, axis=0, keepdims=True)


def no_loss(params, stats, out, label, context, key):
  loss, aux = _METHOD.local_loss(params, stats, out, label, context, key)
  return lax.stop_gradient(loss), aux


def unlucky(key, out, place):
  """Parameters from outside of the key."""
  return {"scale": jnp.asarray(np.random.default_rng().normal(size=3), jnp.float32)}, {}


FAULTS = {
  "weakly typed statistics": (
    {"init_layer": weak_statistics, "local_loss": moving_mean},
    {"types"},
  ),
  "scores that depend on the batch": ({"class_scores": batch_scores}, {"evaluation"}),
  "other argument names": (
    {"hand_on": lambda h, *, train, key=None: _METHOD.hand_on(h, train=train)},
    {"signatures", "shapes"},
  ),
  "no gradient": ({"local_loss": no_loss}, {"locality", "learning"}),
  "numbers from outside of the key": ({"init_layer": unlucky}, {"keys"}),
  "a plain view of another scale": (
    {"score_views": lambda image: -_METHOD.score_views(image)},
    {"learning"},
  ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_by_its_checks_alone(name):
  """A suite that passes whatever it is given proves nothing."""
  changes, expected = FAULTS[name]
  case = conformance.Case(
    "broken", name, lambda _: _METHOD._replace(**changes), {"mlp": 0.7}, brief=("mlp",)
  )
  with pytest.raises(ExceptionGroup) as caught:
    conformance.run(case)
  found = {n.split("'")[1] for e in caught.value.exceptions for n in e.__notes__ if "check" in n}
  assert found == expected
