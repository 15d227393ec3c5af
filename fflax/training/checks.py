"""Which combinations of a run cannot be: refused before any work, and without shapes."""

from collections.abc import Sequence

from fflax.training.lookahead import Lookahead
from fflax.training.recurrent_sweep import check_recurrence
from fflax.types import Method, Network, Readout, Schedule


def check_run(
  network: Network,
  method: Method,
  schedule: Schedule,
  readouts: Sequence[Readout],
  lookahead: Lookahead | None = None,
  rematerialize: bool = False,
) -> None:
  """Refuses impossible combinations.

  Raises:
    ValueError: one sentence that says why.
  """
  if method.locality == "collaborative" and method.goodness is None:
    raise ValueError(f"method {method.name!r} is collaborative, but has no goodness to tell")
  if method.locality == "global" and (schedule.active is not None or schedule.reforward):
    raise ValueError(
      f"schedule {schedule.name!r} needs layers that learn from their own loss; method "
      f"{method.name!r} is global: use schedule 'simultaneous'"
    )
  if rematerialize and method.locality != "global" and lookahead is None:
    raise ValueError(
      f"rematerialize is for end-to-end gradients: method {method.name!r} is {method.locality}, "
      "and its layers keep no activations"
    )
  if method.recurrence is not None:
    check_recurrence(network, method, schedule, lookahead)
  if lookahead is not None:
    _check_lookahead(method, schedule, lookahead)
  if not readouts:
    raise ValueError("a run needs at least one readout")
  if method.end_to_end_view is not None:
    if method.locality != "global":
      raise ValueError(f"method {method.name!r} learns end to end, but is {method.locality}")
    if all(r.loss is None for r in readouts):
      raise ValueError(
        f"the layers of method {method.name!r} learn from a trained readout: add 'norm_head' to "
        "the readouts"
      )
  names = [readout.name for readout in readouts]
  for readout in readouts:
    if names.count(readout.name) > 1:
      raise ValueError(f"the readouts hold {readout.name!r} twice, but are told apart by name")
    if readout.view == "scores" and method.score_views is None:
      raise ValueError(
        f"readout {readout.name!r} reads class scores, and the layers of method {method.name!r} "
        "give none in this form: use readout 'softmax_head'"
      )
  if method.negatives_from == "plain" and all(r.loss is None for r in readouts):
    raise ValueError(
      f"method {method.name!r} draws hard negatives from a trained readout: add 'softmax_head' to "
      "the readouts"
    )


def _check_lookahead(method: Method, schedule: Schedule, lookahead: Lookahead) -> None:
  if method.locality != "strict":
    raise ValueError(
      f"look-ahead joins layers that learn from their own loss; method {method.name!r} is "
      f"{method.locality} already"
    )
  if schedule.active is not None or schedule.reforward:
    raise ValueError(
      f"look-ahead needs all layers' losses at once, which schedule {schedule.name!r} does not "
      "give: use schedule 'simultaneous'"
    )
  if method.goodness is None and (lookahead.mode == "scalar" or lookahead.observe is not None):
    raise ValueError(
      f"this look-ahead reads the layers' goodness, and method {method.name!r} has none: use mode "
      "'exact' with another schedule"
    )
