"""Processes that train one run together: how each finds the others, and how it leaves them.

`--config.distributed.coordinator=HOST:PORT` with the number of processes and each one's own number,
or `=auto` where jax finds the others by itself (SLURM, MPI, Kubernetes, TPU pods). Each runs the
same command; the work is shared by `--config.mesh.data` or `--config.mesh.layer`.
"""

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from experiments import cli
from fflax.training import processes

AUTO = "auto"

_GRACE = 2
"""Seconds that process 0, without which the others end at once, leaves them to say why, too."""


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
  """How this process finds those that it trains with; no part of a run's identity.

  Attributes:
    coordinator: "HOST:PORT" of process 0, or "auto": everything from the surroundings; empty: this
      process is alone.
    num_processes: how many there are; 0 with "auto".
    process_id: which one this is, from 0; -1 with "auto".
    timeout: seconds that processes wait for each other at the start, and after which one that gives
      no sign of life is taken for lost, which ends the others.
  """

  coordinator: str = ""
  num_processes: int = 0
  process_id: int = -1
  timeout: int = 100


def arguments(config: DistributedConfig) -> dict[str, Any]:
  """What `jax.distributed.initialize` is called with; {} for a process that is alone.

  Raises:
    ValueError: one sentence about the first thing that is wrong.
  """
  where, number, own = config.coordinator, config.num_processes, config.process_id
  if config.timeout < 1:
    raise ValueError(f"distributed.timeout must be at least 1 second, not {config.timeout}")
  if where in ("", AUTO) and (number, own) != (0, -1):
    reason = "finds them by itself" if where else "is empty"
    raise ValueError(
      "distributed.num_processes and distributed.process_id belong to a coordinator HOST:PORT, but "
      f"distributed.coordinator {reason}: leave them out or name it"
    )
  if not where:
    return {}
  found: dict[str, Any] = {"heartbeat_timeout_seconds": config.timeout}
  # It ends the process with a stack trace; `_in_time` speaks before.
  found["initialization_timeout"] = 2 * config.timeout
  if where == AUTO:
    return found
  host, _, port = where.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise ValueError(f"distributed.coordinator must be HOST:PORT or {AUTO!r}, not {where!r}")
  if number < 1:
    raise ValueError(f"distributed.num_processes must be at least 1, not {number}")
  if not 0 <= own < number:
    raise ValueError(
      f"distributed.process_id must be in [0, {number}) for {number} processes, not {own}"
    )
  return {"coordinator_address": where, "num_processes": number, "process_id": own, **found}


def check_joined(config: DistributedConfig) -> None:
  """Refuses a run of several processes in a command that has not joined them.

  Raises:
    ValueError: one sentence.
  """
  if config.coordinator and not jax.distributed.is_initialized():
    raise ValueError(
      "config.distributed is set, but only experiments.train runs in several processes"
    )


@contextlib.contextmanager
def joined(config: DistributedConfig) -> Iterator[None]:
  """Finds the other processes; what fails in here ends this process without waiting for them.

  For jax waits for all of them when a process ends, and the others may be waiting for this one:
  they notice that it is gone, and end, too.

  Raises:
    ValueError: `config` is wrong; nothing was begun.
  """
  chosen = arguments(config)
  if not chosen:
    yield
    return
  try:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    with _in_time(config), cli.checking():
      _initialize(chosen)
      processes.wait_for_all("all have come")
    yield
  except Exception as error:  # whatever it is: a process that hangs helps nobody
    code = cli.report(_lost(error))
    if isinstance(error, cli.UsageError) and processes.is_first():
      time.sleep(_GRACE)
    _leave(code)


def _initialize(chosen: dict[str, Any]) -> None:
  try:
    jax.distributed.initialize(**chosen)
  except ValueError as error:
    raise ValueError(
      f"jax finds no other processes around this one ({error}): name distributed.coordinator, "
      "distributed.num_processes and distributed.process_id"
    ) from error


@contextlib.contextmanager
def _in_time(config: DistributedConfig) -> Iterator[None]:
  """Ends the process if the others do not come; jax itself would end it with a stack trace."""

  who = f"process {config.process_id} of {config.num_processes} has"
  if config.coordinator == AUTO:
    who = "this process has"
  sentence = (
    f"{who} not met all others at {config.coordinator} within {config.timeout} s: is that a free "
    "port of process 0's machine, and has every process been started?"
  )

  def give_up() -> None:
    _leave(cli.report(cli.UsageError(sentence)))

  timer = threading.Timer(config.timeout, give_up)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _lost(error: Exception) -> Exception:
  """A sentence for what comes from the connections to other processes."""
  causes: list[BaseException] = [error]
  while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
    causes.append(cause)
  found = [c for c in causes if isinstance(c, jax.errors.JaxRuntimeError) or "Gloo" in str(c)]
  if not found or isinstance(error, cli.UsageError):
    return error
  first = str(found[0]).splitlines()[0]
  return cli.Stopped(
    f"process {jax.process_index()} of {jax.process_count()} cannot go on with the others "
    f"({first}): what is saved is whole, and the same command in every process goes on from it"
  )


def _leave(code: int) -> None:
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
