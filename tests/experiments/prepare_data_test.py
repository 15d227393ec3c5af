"""The command line of `prepare_data`, and with it what `cli.run` promises to every command."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

# Defines flags when it is first read from, and flagsaver would take them away again.
from array_record.python import array_record_data_source  # noqa: F401
from PIL import Image

from experiments import cli, prepare_data
from fflax.data import sources
from tests.data import tfds_fixture

FLAGS = flags.FLAGS


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  if not FLAGS.is_parsed():
    FLAGS(["prepare_data"])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  root = tmp_path_factory.mktemp("tfds")
  rng = np.random.RandomState(0)
  splits = {
    part: (rng.randint(0, 256, (n, 4, 4, 1)).astype(np.uint8), np.arange(n) % 3)
    for part, n in (("train", 12), ("test", 6))
  }
  tfds_fixture.write(root, splits, num_classes=5)
  return root, splits


def call(repo_root, *arguments):
  """Runs the command as a user does."""
  return subprocess.run(
    [sys.executable, "-m", "experiments.prepare_data", *arguments],
    cwd=repo_root,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
  )


def main(**values):
  with flagsaver.flagsaver(**values):
    prepare_data.main(["prepare_data"])


def test_packs_a_prepared_set_and_refuses_to_overwrite(repo_root, prepared, tmp_path):
  root, splits = prepared
  out = tmp_path / "toy.npz"
  done = call(repo_root, "--dataset=toy", f"--data_dir={root}", f"--npz={out}")
  assert done.returncode == 0, done.stderr
  assert "12 training and 6 test examples of 5 classes" in done.stdout
  got = sources.load("toy", data_dir=tmp_path)
  np.testing.assert_array_equal(got.train.image, splits["train"][0])
  np.testing.assert_array_equal(got.test.label, splits["test"][1])
  assert got.num_classes == 5
  before = out.read_bytes()
  again = call(repo_root, "--dataset=toy", f"--data_dir={root}", f"--npz={out}")
  assert again.returncode == 2 and out.read_bytes() == before
  assert again.stderr.splitlines()[-1].endswith("toy.npz: exists and is not overwritten")
  assert "Traceback" not in again.stderr


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    ((), "--dataset is missing, for example --dataset=mnist"),
    (("--datset=mnist",), "Unknown command line flag 'datset'. Did you mean: dataset ?"),
    (("--dataset=mnist", "--image_size=0"), "flag --image_size=0: 0 is not a positive integer"),
    (("mnist",), "unexpected argument 'mnist', flags are written --name=value"),
  ],
)
def test_wrong_flags_are_one_sentence_and_exit_code_2(repo_root, arguments, sentence):
  """absl alone exits with 1, as a crash does, so a sweep could not tell them apart."""
  done = call(repo_root, *arguments)
  assert done.returncode == 2
  (line,) = done.stderr.strip().splitlines()
  assert sentence in line and done.stdout == ""


def test_what_a_flag_would_not_change_is_refused(tmp_path):
  out = {"array_record": str(tmp_path / "x.array_record")}
  for source in ({"random": "mnist:20"}, {"dataset": "digits"}, {"dataset": "x.npz"}):
    with pytest.raises(cli.UsageError, match="^--image_size is for --folder and for prepared sets"):
      main(**out, **source, image_size=4)
  for source in ({"random": "mnist:20"}, {"dataset": "digits"}, {"folder": str(tmp_path)}):
    for flag in ("train_split", "test_split"):
      with pytest.raises(cli.UsageError, match=f"^--{flag} is for prepared sets"):
        main(**out, **source, **{flag: "train[:9]"})
  for useless in ({"image_size": 4}, {"train_split": "train[:9]"}):
    with pytest.raises(cli.UsageError, match="is for .*prepared sets that are packed$"):
      main(dataset="mnist", **useless)  # nothing is packed
  assert not list(tmp_path.iterdir())


def test_damage_found_during_the_work_is_one_sentence():
  """In every command, by what starts them all."""
  code = "from experiments import cli\nfrom fflax.data.dataset import DataError\n"
  code += "def main(argv): raise DataError('x: record 3\\nis cut')\ncli.run(main)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (cli.EXIT_STOPPED, "-c: x: record 3 is cut\n")


def test_help_succeeds(repo_root):
  done = call(repo_root, "--help")
  assert done.returncode == 0 and "--dataset" in done.stdout and done.stderr == ""


def test_without_tensorflow_preparing_is_one_sentence(tmp_path, monkeypatch):
  monkeypatch.setattr(prepare_data.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(
    cli.UsageError, match=r"mnist is not prepared .* needs TensorFlow.*fflax\[data"
  ):
    main(dataset="mnist", data_dir=str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_with_tensorflow_the_set_is_prepared_for_random_access(tmp_path, monkeypatch):
  """Stored as TFRecords (the default), the set could not be read without TensorFlow."""
  import tensorflow_datasets as tfds

  asked = []

  class Builder:
    data_dir = str(tmp_path / "made")

    def download_and_prepare(self):
      asked.append("prepared")

  def builder(name, **options):
    asked.append((name, options))
    return Builder()

  monkeypatch.setattr(prepare_data.importlib.util, "find_spec", lambda name: "there")
  monkeypatch.setattr(tfds, "builder", builder)
  assert prepare_data.prepare("mnist", str(tmp_path)) == pathlib.Path(Builder.data_dir)
  assert asked == [
    ("mnist", {"data_dir": str(tmp_path), "file_format": "array_record"}),
    "prepared",
  ]


def test_an_unknown_name_does_not_print_a_page_of_names(tmp_path, monkeypatch):
  monkeypatch.setattr(prepare_data.importlib.util, "find_spec", lambda name: "there")
  with pytest.raises(cli.UsageError, match=r"^Dataset no_such_set not found\.?$"):
    main(dataset="no_such_set", data_dir=str(tmp_path))


def test_a_prepared_set_is_left_alone(prepared, capsys):
  root, _ = prepared
  before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
  main(dataset="toy", data_dir=str(root))
  assert "toy is prepared in" in capsys.readouterr().out
  assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"npz": "out.zip"}, r"out\.zip: the name must end in \.npz"),
    ({"npz": "/nonexistent/dir/x.npz", "test_split": "dev"}, "Unknown split 'dev'"),
    ({"dataset": "to y"}, "'to y' is no data set's name"),
  ],
)
def test_bad_input_is_refused(prepared, values, message):
  with pytest.raises(cli.UsageError, match=message):
    main(**({"dataset": "toy", "data_dir": str(prepared[0])} | values))


def test_packs_a_folder_of_images(tmp_path, capsys):
  for part, name, shade in (("train", "a", 1), ("train", "b", 2), ("val", "a", 3), ("val", "b", 4)):
    path = tmp_path / "images" / part / name / "one.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (5, 7), (shade, 0, 0)).save(path)
  (tmp_path / "classes.txt").write_text("b\na\n")
  out = tmp_path / "tiny_imagenet.npz"
  main(
    folder=str(tmp_path / "images"),
    class_list=str(tmp_path / "classes.txt"),
    image_size=4,
    npz=str(out),
  )
  assert "2 training and 2 test examples of 2 classes" in capsys.readouterr().out
  got = sources.load("tiny_imagenet", data_dir=tmp_path)
  assert got.train.image[:, 0, 0, 0].tolist() == [2, 1] and got.train.label.tolist() == [0, 1]
  assert got.test.image[:, 3, 3, 0].tolist() == [4, 3]
  records = tmp_path / "tiny_imagenet.array_record"
  main(
    folder=str(tmp_path / "images"),
    class_list=str(tmp_path / "classes.txt"),
    image_size=4,
    array_record=str(records),
  )
  assert "2 training and 2 test examples of 2 classes" in capsys.readouterr().out
  streamed = sources.load(str(records))
  for part in ("train", "test"):
    for mine, other in zip(getattr(streamed, part), getattr(got, part), strict=True):
      np.testing.assert_array_equal(mine, other)
  assert json.loads((records / "set.json").read_text())["class_names"] == ["b", "a"]
  goes_with = "--folder goes with --npz=FILE or --array_record, and without --dataset"
  for values, message in (
    ({"npz": None}, goes_with),
    ({"dataset": "toy"}, goes_with),
    ({"array_record": "x.array_record"}, "give --npz or --array_record, one at a time"),
    ({"random": "digits:9"}, goes_with),
    ({"folder": None, "random": "digits:9"}, "--random goes with --array_record, and without"),
    ({"folder": None, "dataset": "toy", "class_list": "x"}, "--class_list is for --folder"),
    ({"folder": "/nonexistent"}, "there is no folder 'train'"),
  ):
    with pytest.raises(cli.UsageError, match=message):
      main(**({"folder": str(tmp_path), "npz": str(tmp_path / "new.npz")} | values))


def test_packs_files_and_noise_as_records(prepared, tmp_path, capsys):
  root, splits = prepared
  names = [str(tmp_path / f"{n}.array_record") for n in "abc"]
  main(dataset="toy", data_dir=str(root), array_record=names[0])
  main(dataset="toy", data_dir=str(root), npz=str(tmp_path / "a.npz"))
  main(dataset=str(tmp_path / "a.npz"), array_record=names[1])
  for name in names[:2]:
    got = sources.load(name)
    np.testing.assert_array_equal(got.train.image, splits["train"][0])
    np.testing.assert_array_equal(got.test.label, splits["test"][1])
    assert (got.num_classes, got.max_value) == (5, 255)
  capsys.readouterr()
  main(random="imagenet100:21", array_record=names[2])
  assert "19 training and 2 test examples of 100 classes" in capsys.readouterr().out
  noise = sources.load(names[2]).train
  assert noise.image.shape == (19, 224, 224, 3)
  means = noise.image[:].mean((1, 2, 3))
  assert np.all(np.diff(means) > 0) and means[-1] - means[0] == pytest.approx(23, abs=1)
  assert not np.array_equal(noise.image[0], sources.load(names[2]).test.image[0])
  for values, message in (
    ({"dataset": "toy", "array_record": names[0]}, "exists and is not overwritten"),
    ({"dataset": "toy", "array_record": "x.records"}, r"the name must end in \.array_record"),
    ({"random": "imagenet100", "array_record": "x.array_record"}, "as NAME:N, N of 2 or more"),
    ({"random": "mnist:1", "array_record": "x.array_record"}, "as NAME:N, N of 2 or more"),
    ({"random": "nist:5", "array_record": "x.array_record"}, "no set 'nist' is known, only digits"),
  ):
    with pytest.raises(cli.UsageError, match=message):
      main(**values)


PROGRAM = """
from absl import flags
from ml_collections import config_flags
from experiments import cli

CONFIG = config_flags.DEFINE_config_file("config", None)
MODE = flags.DEFINE_string("mode", "ok", "")

def main(argv):
  if MODE.value == "usage":
    raise cli.UsageError("first line\\n  second")
  if MODE.value == "checking":
    with cli.checking():
      raise FileNotFoundError(2, "No such file", "x.npz")
  if MODE.value == "fault":
    raise ValueError("a fault of the program")
  print(CONFIG.value.inner.rate)
  return 3 if MODE.value == "three" else None

cli.run(main, defaults={"config": "config.py"})
"""

CONFIG = """
import ml_collections

def get_config():
  return ml_collections.ConfigDict({"inner": {"rate": 0.1}, "name": "a"})
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory, repo_root):
  """Runs PROGRAM in a folder that holds CONFIG."""
  folder = tmp_path_factory.mktemp("program")
  (folder / "config.py").write_text(CONFIG)
  (folder / "other.py").write_text(CONFIG.replace("0.1", "0.2"))
  environment = os.environ | {"PYTHONPATH": str(repo_root)}

  def run(*arguments):
    return subprocess.run(
      [sys.executable, "-c", PROGRAM, *arguments],
      cwd=folder,
      env=environment,
      capture_output=True,
      text=True,
      timeout=300,
    )

  return run


@pytest.mark.parametrize(
  ("arguments", "rate"),
  [
    ((), "0.1"),
    (("--config.inner.rate=0.5",), "0.5"),
    (("--config=other.py",), "0.2"),
    (("--config", "other.py", "--config.inner.rate=0.7"), "0.7"),
  ],
)
def test_run_fills_in_defaults(program, arguments, rate):
  done = program(*arguments)
  assert (done.returncode, done.stdout, done.stderr) == (0, rate + "\n", "")


@pytest.mark.parametrize(
  ("arguments", "status", "sentence"),
  [
    (("--mode=three",), 3, None),
    (("--mode=usage",), 2, "first line second"),
    (("--mode=checking",), 2, "[Errno 2] No such file: 'x.npz'"),
    (("--config.inner.speed=1",), 2, "--config.inner.speed=1: the configuration has no such field"),
    (("--config.outer.rate=1",), 2, "--config.outer.rate=1: the configuration has no such field"),
    (("--config.name.x=1",), 2, "--config.name.x=1: the configuration has no such field"),
    (("--config.inner.rate=fast",), 2, "could not convert string to float: 'fast'"),
    (("--config=nope.py",), 2, "--config=nope.py: there is no such file"),
  ],
)
def test_run_turns_refusals_into_one_sentence(program, arguments, status, sentence):
  done = program(*arguments)
  assert done.returncode == status, done.stderr
  if sentence is None:
    assert done.stderr == ""
  else:
    (line,) = done.stderr.strip().splitlines()
    assert sentence in line


def test_run_keeps_the_traceback_of_a_fault(program):
  """A ValueError of the program must not look like the user's mistake."""
  done = program("--mode=fault")
  assert done.returncode == 1
  assert "Traceback" in done.stderr and "a fault of the program" in done.stderr
