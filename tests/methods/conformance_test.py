"""Every registered method under the conformance suite, and planted faults that it must find."""

import pytest

pytest.register_assert_rewrite("tests.methods.conformance")

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
