"""What `tests/trust.py` tries: command lines to be refused, and the tests of damage by kind."""

COMMANDS = (
  ("train", "--config.epochs=nan"),
  ("train", "--config.epochs=-3"),
  ("train", "--config.epochs=1e30"),
  ("train", "--config.seed=-1"),
  ("train", "--config.optimizer.learning_rate=nan"),
  ("train", "--config.optimizer.learning_rate=-inf"),
  ("train", "--config.networks.mlp.sizes=(0,)"),
  ("train", "--config.networks.mlp.sizes=wide"),
  ("train", "--config.networks.mlp.width=3"),
  ("train", "--config.method=backprop", "--config.schedule=alternating"),
  ("train", "--config.method=recurrent", "--config.network=vit"),
  ("train", "--config.lookahead.mode=exact", "--config.schedule=greedy"),
  ("train", "--config.schedule=staggered"),
  ("train", "--config.readouts=()"),
  ("train", "--config.readouts=('vote','vote')"),
  ("train", "--config.eval_samples=3"),
  ("train", "--config.data.batch_size=100000"),
  ("train", "--config.data.validation=1437"),
  ("train", "--config.data.name=tfds:mnist", "--config.data.data_dir=/nowhere"),
  ("train", "--config=/nowhere.py"),
  ("train", "--config.data.augment.crop=-1"),
  ("train", "--no_such_flag"),
  ("evaluate", "--workdir=/nowhere"),
  ("evaluate", "--step=many"),
)

_CHECKPOINT, _LOOP = "tests/training/checkpoint_test.py", "tests/training/loop_test.py"
_NPZ, _DATASET = "tests/data/npz_source_test.py", "tests/data/dataset_test.py"
_RECORDS, _TFDS = "tests/data/array_record_source_test.py", "tests/data/tfds_source_test.py"
_RUNS, _TRAIN = "tests/experiments/damage_test.py", "tests/experiments/train_test.py"
_FOLDER, _METRICS = "tests/experiments/workdir_test.py", "tests/training/metrics_test.py"

DAMAGE: dict[str, dict[str, tuple[str, ...]]] = {
  "checkpoints cut short, emptied or with flipped bits": {
    _CHECKPOINT: ("damage_of_any_file", "manifest_flips", "without_bytes", "orbax_cannot_read"),
    _RUNS: ("damaged_checkpoints",),
    _TRAIN: ("damaged_checkpoint",),
  },
  "checkpoints of another run, version or step": {
    _CHECKPOINT: ("another_version", "foreign_state", "foreign_fingerprint", "another_generator")
  },
  "saves and removals that were cut": {
    _CHECKPOINT: ("half_written", "cut_removal"),
    _LOOP: ("cut_in_every_window", "kill_9", "signal_saves", "second_ctrl_c"),
    _FOLDER: ("killed_while",),
    _RUNS: ("killed_between",),
  },
  "metrics cut short or broken": {_METRICS: ("resumed_file", "broken_file")},
  "losses and weights that are not finite": {
    _LOOP: ("nan_loss", "infinite_parameters", "first_failure"),
    _TRAIN: ("divergent_run",),
  },
  "arrays: objects, types, NaN, labels out of range, empty splits": {
    _RUNS: ("bad_arrays",),
    _NPZ: ("unusable_files", "object_arrays", "declared_classes", "no_array_and"),
    _DATASET: ("unusable_arrays", "between_splits", "one_class", "must_leave"),
    _TRAIN: ("bad_data_files",),
  },
  "archives cut short or with flipped bits": {
    _RUNS: ("cut_and_flipped",),
    _NPZ: ("every_truncation", "altered_pixels", "missing_file"),
  },
  "prepared sets and records, damaged or of another kind": {
    _TFDS: ("damage_is_refused", "other_kinds", "not_there", "declared_classes"),
    _RECORDS: ("damage_is_one", "flipped_bit", "write_refuses"),
  },
  "a full disk, files that may not grow": {_RUNS: ("full_disk", "may_not_grow")},
  "folders read-only or without rights": {
    _RUNS: ("read_only", "without_rights"),
    _RECORDS: ("cannot_be_made",),
  },
  "two runs in one folder, folders of others": {
    _RUNS: ("one_process_at_a_time", "second_run"),
    _TRAIN: ("another_configuration", "something_else"),
  },
}
"""By kind, in which file the tests of it stand and words of their names."""
