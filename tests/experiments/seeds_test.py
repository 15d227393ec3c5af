"""The study of several seeds: which seeds it takes, and the command that it writes down."""

import pytest

from experiments import cli
from experiments.studies import seeds


def test_seeds_are_whole_different_numbers():
  assert cli.parse_seeds(["0", " 7", "3"]) == [0, 7, 3]


@pytest.mark.parametrize("values", [["a"], ["1.5"], [""], [], ["0", "0"], ["1", "01"]])
def test_other_seeds_are_one_sentence_that_names_the_flag(values):
  """One run counted twice would halve the deviation that is published."""
  with pytest.raises(ValueError, match="^--seeds[^\n]*$"):
    cli.parse_seeds(values)


@pytest.mark.parametrize(
  "private",
  [
    ["--config.data.data_dir=/home/me", "--runs=/home/me/runs"],
    ["--config.data.data_dir", "/home/me", "-runs", "/home/me/runs"],
    ["-config.data.data_dir=/home/me"],
  ],
)
def test_the_command_keeps_what_changes_numbers_and_names_no_folder_of_the_user(private):
  argv = ["--config=c.py", *private, "--seeds=0,1", "--config.networks.mlp.sizes=(3, 3)"]
  assert seeds.command_line(argv) == (
    "python -m experiments.studies.seeds --config=c.py --config.data.data_dir=DIR --seeds=0,1 "
    "'--config.networks.mlp.sizes=(3, 3)'"
  )
