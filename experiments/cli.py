"""How every command here starts: absl flags in; bad input ends in one sentence and exit code 2."""

import contextlib
import errno
import functools
import pathlib
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from fflax.data.dataset import DataError

EXIT_STOPPED = 1
EXIT_USAGE = 2


class UsageError(Exception):
  """Input that the command refuses; its text is the one sentence that the user sees."""


class Stopped(Exception):
  """Work that ended early for a reason that its text names; exit code 1, without a traceback."""


_SENTENCES = (UsageError, Stopped, DataError)


@contextlib.contextmanager
def checking() -> Iterator[None]:
  """Turns `ValueError` and `OSError` into `UsageError`.

  For what a command does before its work begins: configuration, data, work directory. Later the
  same kinds of exception are faults of the program and keep their traceback.
  """
  try:
    yield
  except (ValueError, OSError) as error:
    raise UsageError(str(error) or type(error).__name__) from error


def _unless_late_write(usual: Callable[[Any], Any], unraisable: Any) -> None:
  """A `sys.unraisablehook` for when a save has failed and its other writes end, unheard.

  When one write of a checkpoint fails, orbax closes its event loop; tensorstore's threads, which
  tell that loop of the others, would each print a traceback beside the one sentence.
  """
  error = unraisable.exc_value
  if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
    usual(unraisable)


_CIRCUMSTANCES = tuple(
  getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EIO", "ESTALE")
)


@contextlib.contextmanager
def working(folder: pathlib.Path) -> Iterator[None]:
  """Turns a disk that is full, or gone, and data found damaged during the work into `Stopped`.

  Args:
    folder: of the run; what is saved there is whole, so the sentence says how to go on.
  """
  usual = sys.unraisablehook
  if getattr(usual, "func", None) is not _unless_late_write:
    # Stays if the work fails: they come later.
    sys.unraisablehook = functools.partial(_unless_late_write, usual)
  try:
    yield
    sys.unraisablehook = usual
  except DataError as error:  # of a streamed set
    raise Stopped(str(error)) from error
  except OSError as error:
    if error.errno not in _CIRCUMSTANCES:
      raise
    raise Stopped(
      f"{folder} cannot be written any more ({error.strerror}): what is saved there is whole, and "
      "the same command goes on from it"
    ) from error


def run(
  main: Callable[[list[str]], Any],
  argv: Sequence[str] | None = None,
  *,
  defaults: Mapping[str, str] | None = None,
) -> None:
  """Parses the flags, calls `main(argv)` and exits with what it returns.

  Flag errors, arguments that are no flags, missing configuration files, unknown configuration
  fields and `UsageError` from `main` become one sentence on stderr and exit code 2, where absl
  alone would exit with 1; so do `Stopped` and `DataError` (records are read, and found damaged,
  during the work), with exit code 1. Other exceptions keep their traceback. `--help` exits with 0.

  Args:
    main: gets the program's name as its only argument; None is returned for success.
    argv: None: `sys.argv`.
    defaults: flag -> value taken where the command line does not set the flag. The default of a
      configuration flag belongs here: in the flag's definition it would be parsed on import, and a
      wrong override be a traceback.
  """
  given = list(sys.argv if argv is None else argv)
  names = {argument.lstrip("-").split("=")[0] for argument in given[1:]}
  missing = [f"--{name}={value}" for name, value in (defaults or {}).items() if name not in names]

  def guarded_main(args: list[str]) -> Any:
    try:
      return main(args)
    except _SENTENCES as error:
      return report(error)

  logging.set_verbosity(logging.WARNING)  # orbax tells every file it writes; --verbosity=0 shows it
  app.run(guarded_main, argv=given[:1] + missing + given[1:], flags_parser=_parse)


def report(error: Exception) -> int:
  """Says why a command ends: one sentence, or the traceback of a fault; returns its exit code."""
  if isinstance(error, _SENTENCES):
    _say(error)
    return EXIT_USAGE if isinstance(error, UsageError) else EXIT_STOPPED
  traceback.print_exception(error)
  return EXIT_STOPPED


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
  except SystemExit:
    sys.exit(0)  # only the help flags leave here, and absl makes that an error
  except (flags.Error, ValueError, OSError) as error:
    _refuse(error)
  except (AttributeError, LookupError, TypeError) as error:  # ml_collections, for an unknown field
    field = str(error.args[0] if error.args else error).strip("'\"")
    overrides = [a for a in argv[1:] if "." in a.split("=")[0]]
    culprits = [a for a in overrides if field in a.split("=")[0].split(".")]
    _refuse(f"{', '.join(culprits or overrides)}: the configuration has no such field ({field})")
  for name in flags.FLAGS:
    # ml_collections' flag for a file; its flag for a dataclass answers with the dataclass.
    path = getattr(flags.FLAGS[name], "config_filename", None)
    if isinstance(path, str) and not pathlib.Path(path.split(":")[0]).is_file():
      _refuse(f"--{name}={path}: there is no such file")
  if len(rest) > 1:
    _refuse(f"unexpected argument {rest[1]!r}, flags are written --name=value")
  return rest


def _refuse(error: Exception | str) -> NoReturn:
  _say(error)
  sys.exit(EXIT_USAGE)


def _say(error: Exception | str) -> None:
  program = pathlib.Path(sys.argv[0]).stem
  sys.stderr.write(f"{program}: {' '.join(str(error).split())}\n")


def command_line(
  module: str,
  argv: Sequence[str],
  data_dir: str = "data_dir",
  left_out: Sequence[str] = ("runs",),
) -> str:
  """The command that reproduces a study, from its arguments, without the user's own folders.

  Args:
    module: that was started.
    argv: its arguments.
    data_dir: the flag whose value becomes DIR.
    left_out: flags that do not change the numbers.
  """
  kept, rest = [], list(argv)
  while rest:
    argument = rest.pop(0)
    flag, equals, _ = argument.lstrip("-").partition("=")
    private = flag in (*left_out, data_dir)
    if private and not equals and rest:
      rest.pop(0)  # written as `--flag value`
    if flag == data_dir:
      kept.append(f"--{data_dir}=DIR")
    elif not private:
      kept.append(argument)
  return shlex.join(["python", "-m", module, *kept])


def at_least_one(flag: str, values: Sequence[str], what: str) -> None:
  """Raises ValueError, one sentence, if a list flag is empty."""
  if not values:
    raise ValueError(f"--{flag} needs at least one {what}")


def parse_seeds(values: Sequence[str]) -> list[int]:
  """The values of `--seeds` as integers.

  Raises:
    ValueError: there is none, one is no integer, or one comes twice; one sentence.
  """
  at_least_one("seeds", values, "seed")
  found: list[int] = []
  for value in values:
    try:
      seed = int(value)
    except ValueError:
      raise ValueError(f"--seeds takes integers with commas between them, not {value!r}") from None
    if seed in found:
      raise ValueError(f"--seeds names seed {seed} twice: one run would count as two")
    found.append(seed)
  return found
