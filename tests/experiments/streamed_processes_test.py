"""A streamed set in runs of several devices and processes: what the same run finds in memory."""

import json

import numpy as np
import pytest

from tests.experiments.distributed_test import SMALL, ends, last_state, start
from tests.experiments.mesh_test import with_devices
from tests.experiments.prepare_data_test import main, parsed_flags  # noqa: F401


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["data", "layer"])
def test_devices_and_processes_stream_what_lies_in_memory(tmp_path, axis):
  """Two devices and two processes stream the same bits.

  They are those of the run in memory; under `data` up to rounding, for the compiler parts a window
  otherwise than a whole set.
  """
  records = tmp_path / "digits.array_record"
  main(dataset="digits", array_record=str(records))
  flags = (*SMALL, "--config.epochs=1", "--config.eval_every=1", f"--config.mesh.{axis}=2")
  patient = ("--config.distributed.timeout=100",)
  rows, states = [], []
  for name, data, processes in (
    ("memory", "digits", 1),
    ("one", records, 1),
    ("two", records, 2),
  ):
    folder, own = tmp_path / name, (*flags, f"--config.data.name={data}")
    if processes == 1:
      done = with_devices("experiments.train", *own, f"--workdir={folder}", devices=2)
      assert done.returncode == 0, done.stderr
    else:
      found = ends(start(folder, *own, each=(patient, patient)))
      assert [code for code, _, _ in found] == [0, 0], found
    rows.append((folder / "metrics.jsonl").read_bytes())
    states.append(last_state(folder))
  memory, one, two = rows
  assert one == two and states[1] == states[2]
  if axis == "layer":
    assert memory == one and states[0] == states[1]
  parsed = [[json.loads(line) for line in row.splitlines()] for row in (memory, one)]
  assert len(parsed[0]) == len(parsed[1]) > 0
  for a, b in zip(*parsed, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=name)
