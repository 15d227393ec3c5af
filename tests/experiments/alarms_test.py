"""Alarms name a layer once, and only layers that have a gamma."""

import pytest

from experiments.alarms import Alarms


@pytest.mark.parametrize(
  ("gamma", "what"),
  [(0.01, "collapsed"), (-0.01, "collapsed"), (21.0, "exploded"), (-30.0, "exploded")],
)
def test_an_alarm_is_raised_once(gamma, what):
  alarms = Alarms(("a", "b"))
  assert alarms.hear({"step": 1, "epoch": 0.5, "train/a/gamma": 1.0, "train/b/gamma": None}) == []
  (line,) = alarms.hear({"step": 2, "epoch": 1.5, "train/a/gamma": gamma})
  assert f"of a {what}" in line and "epoch 1.5" in line
  assert alarms.hear({"step": 3, "epoch": 2.0, "train/a/gamma": gamma}) == []
  assert len(alarms.hear({"step": 3, "epoch": 2.0, "train/b/gamma": gamma})) == 1


def test_runs_without_collaboration_are_silent():
  assert Alarms(("a",)).hear({"step": 1, "epoch": 1.0, "train/a/loss": 0.0}) == []
