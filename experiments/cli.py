"""How every command here starts: absl flags in; bad input ends in one sentence and exit code 2."""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging

EXIT_USAGE = 2


class UsageError(Exception):
  """Input that the command refuses; its text is the one sentence that the user sees."""


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


def run(main: Callable[[list[str]], Any], argv: Sequence[str] | None = None) -> None:
  """Parses the flags, calls `main(argv)` and exits with what it returns.

  Flag errors, arguments that are no flags, and `UsageError` from `main` become one sentence on
  stderr and exit code 2, where absl alone would exit with 1. Other exceptions keep their traceback.
  `--help` exits with 0.

  Args:
    main: gets the program's name as its only argument; None is returned for success.
    argv: None: `sys.argv`.
  """

  def guarded_main(args: list[str]) -> Any:
    try:
      return main(args)
    except UsageError as error:
      _refuse(error)

  logging.set_verbosity(logging.WARNING)  # orbax tells every file it writes; --verbosity=0 shows it
  app.run(guarded_main, argv=None if argv is None else list(argv), flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
  except SystemExit:
    sys.exit(0)  # only the help flags leave here, and absl makes that an error
  # ml_collections lets the KeyError of an unknown field pass, and whatever a config file raises.
  except (flags.Error, LookupError, AttributeError, TypeError, ValueError, OSError) as error:
    _refuse(error)
  if len(rest) > 1:
    _refuse(f"unexpected argument {rest[1]!r}, flags are written --name=value")
  return rest


def _refuse(error: Exception | str) -> None:
  # A KeyError's text is the repr of its message.
  text = error.args[0] if isinstance(error, KeyError) and error.args else error
  program = pathlib.Path(sys.argv[0]).stem
  sys.stderr.write(f"{program}: {' '.join(str(text).split())}\n")
  sys.exit(EXIT_USAGE)
