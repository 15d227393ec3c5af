"""Plants one-line faults, one at a time, and expects the tests to catch each.

    python tests/mutation.py [--jobs 2] [--only WORD] [--list]

A fault is planted in a temporary copy of the tree, never in the checkout. Each names the few tests
that must fail. A fault that survives says that those tests would also pass if the code were wrong.
Exit code 0: all caught; 1: one was missed; 2: one cannot be planted, or its tests do not run.
"""

import argparse
import concurrent.futures
import enum
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
COPIED = ("fflax", "experiments", "tests", "pyproject.toml", "setup.cfg")
TIMEOUT_SECONDS = 180
CLEAN_TIMEOUT_SECONDS = 900


class Fault(NamedTuple):
  """A fault: in `file`, `old` (which must stand there exactly once) becomes `new`.

  Attributes:
    what: what would be wrong, in a few words.
    file: path from the root of the checkout.
    old: exact text.
    new: its replacement.
    tests: pytest arguments: a file, and `-k` with an expression to narrow it.
  """

  what: str
  file: str
  old: str
  new: str
  tests: tuple[str, ...]


FAULTS = (
  Fault(
    "all roles share one key",
    "fflax/random.py",
    "return jax.random.fold_in(key, _ROLES_START + int(role))",
    "return jax.random.fold_in(key, _ROLES_START)",
    ("tests/random_test.py",),
  ),
  Fault(
    "every step draws the same numbers",
    "fflax/random.py",
    "return jax.random.fold_in(root, step)",
    "return jax.random.fold_in(root, 0 * step)",
    ("tests/random_test.py",),
  ),
  Fault(
    "all layers share one key",
    "fflax/random.py",
    "return jax.random.fold_in(role_key(key, role), layer)",
    "return jax.random.fold_in(role_key(key, role), 0 * layer)",
    ("tests/random_test.py",),
  ),
  Fault(
    "the threshold of a sum does not grow with the width",
    "fflax/core/goodness.py",
    'return theta if kind == "mean" else theta * width',
    "return theta",
    ("tests/core/goodness_test.py", "-k", "cut_the_same_examples"),
  ),
  Fault(
    "negatives sometimes carry the true label",
    "fflax/core/labels.py",
    "jax.random.randint(key, label.shape, 1, num_classes)",
    "jax.random.randint(key, label.shape, 0, num_classes)",
    ("tests/core/labels_test.py", "-k", "uniform"),
  ),
  Fault(
    "negative views are pushed up",
    "fflax/core/losses.py",
    "z_neg = sign * (g_neg - theta) / temperature",
    "z_neg = sign * (theta - g_neg) / temperature",
    ("tests/core/losses_test.py", "-k", "logistic"),
  ),
  Fault(
    "the margin helps the own class",
    "fflax/core/losses.py",
    "scale * (scores - margin * onehot)",
    "scale * (scores + margin * onehot)",
    ("tests/core/losses_test.py", "-k", "margin_loss"),
  ),
  Fault(
    "a length of unit sum instead of unit mean square",
    "fflax/core/normalize.py",
    "return h * lax.rsqrt(jnp.mean(jnp.square(h)) + eps**2)",
    "return h * lax.rsqrt(jnp.sum(jnp.square(h)) + eps**2)",
    ("tests/core/normalize_test.py", "-k", "unit_length"),
  ),
  Fault(
    "prototypes of absent classes move",
    "fflax/core/prototypes.py",
    "return jnp.where((number > 0) & (rho < 1.0), moved, prototypes)",
    "return moved",
    ("tests/core/prototypes_test.py", "-k", "numpy or rho"),
  ),
  Fault(
    "bfloat16 does not round the cotangent",
    "fflax/core/numerics.py",
    "  g = operand(cotangent, _FORMS[native])\n  x_t =",
    "  g = cotangent\n  x_t =",
    ("tests/core/numerics_test.py", "-k", "product_of_rounded_operands and dot"),
  ),
  Fault(
    "Winograd's tiles start at the wrong edge",
    "fflax/core/winograd.py",
    "    (low, 2 * tiles + 2 - size - low)\n",
    "    (2 * tiles + 2 - size - low, low)\n",
    ("tests/core/winograd_test.py", "-k", "integers"),
  ),
  Fault(
    "parts of a batch come back in another order",
    "fflax/core/batch_parts.py",
    "lax.dynamic_index_in_dim(x, i, 1, keepdims=False) for x in split",
    "lax.dynamic_index_in_dim(x, i - 1, 1, keepdims=False) for x in split",
    ("tests/core/batch_parts_test.py",),
  ),
  Fault(
    "a convolution of bfloat16 does not round the cotangent",
    "fflax/core/float_conv.py",
    "g = operand(cotangent, conv.form)",
    "g = cotangent",
    ("tests/core/numerics_test.py", "-k", "bfloat16_conv_is_the_product"),
  ),
  Fault(
    "strict methods are driven end to end",
    "fflax/training/step.py",
    '  "strict": strict_sweep,',
    '  "strict": global_sweep,',
    ("tests/training/step_test.py", "-k", "no_method_reaches"),
  ),
  Fault(
    "every device computes the whole batch",
    "fflax/training/step.py",
    "    network = split_layers(network, mesh)\n",
    "    pass\n",
    ("tests/experiments/mesh_test.py", "-k", "forward_forward"),
  ),
  Fault(
    "the mesh of several processes has the first one's devices only",
    "fflax/training/sharding.py",
    "  return [device for own in of.values() for device in own[:each]]\n",
    "  return list(devices[:number])\n",
    ("tests/experiments/distributed_test.py", "-k", "equal_share"),
  ),
  Fault(
    "a recurrent step learns through time",
    "fflax/training/recurrent_sweep.py",
    "    outs = lax.stop_gradient(outs)\n",
    "",
    ("tests/methods/recurrent_oracle_test.py", "-k", "gradient_of_the_losses"),
  ),
  Fault(
    "recurrent layers are not damped",
    "fflax/training/layer_step.py",
    "    return share * old + (1 - share) * new\n",
    "    return new\n",
    ("tests/methods/recurrent_oracle_test.py", "-k", "three_steps"),
  ),
  Fault(
    "a recurrent answer counts the time steps before its window",
    "fflax/training/answers.py",
    "a[first - 1 :]",
    "a",
    ("tests/methods/recurrent_oracle_test.py", "-k", "three_steps"),
  ),
  Fault(
    "alternating layers stay for two steps",
    "fflax/training/schedules.py",
    "== step % num_layers",
    "== step // 2 % num_layers",
    ("tests/training/schedules_test.py", "-k", "alternating_trains"),
  ),
  Fault(
    "interleaved layers hand on the old output",
    "fflax/training/layer_step.py",
    "  if run.schedule.reforward:\n",
    "  if False:\n",
    ("tests/training/step_test.py", "-k", "three_steps_by_hand"),
  ),
  Fault(
    "a hybrid's own losses reach the layers below",
    "fflax/training/sweeps.py",
    "a if v == view else lax.stop_gradient(a)",
    "a",
    ("tests/methods/dtg_oracle_test.py", "-k", "step_of_the_dense_variant"),
  ),
  Fault(
    "the concatenating head reads normalised features",
    "fflax/methods/dtg.py",
    "    readout_features=classifier_features,\n",
    "",
    ("tests/methods/dtg_oracle_test.py", "-k", "two_conv_layers"),
  ),
  Fault(
    "stacked layers draw the first block's numbers",
    "fflax/training/sweeps.py",
    "in_branch(j < size, one, mine, x, first + j, label, key)",
    "in_branch(j < size, one, mine, x, j, label, key)",
    ("tests/training/step_test.py", "-k", "draws_its_own_numbers"),
  ),
  Fault(
    "a long run climbs the loss",
    "fflax/training/optimizers.py",
    "return jnp.maximum(gain, 0.0)",
    "return gain",
    ("tests/training/optimizers_test.py", "-k", "never_climbs"),
  ),
  Fault(
    "every epoch has the same order",
    "fflax/data/stream.py",
    "lambda epoch: jax.random.fold_in(key, epoch)",
    "lambda epoch: jax.random.fold_in(key, 0 * epoch)",
    ("tests/data/stream_test.py", "-k", "every_epoch"),
  ),
  Fault(
    "a resumed stream begins anew",
    "fflax/training/streaming.py",
    "role_key(state.key, Role.BATCH), int(state.step))",
    "role_key(state.key, Role.BATCH), 0)",
    ("tests/training/streaming_test.py", "-k", "equals_the_run"),
  ),
  Fault(
    "padding counts in the accuracy",
    "fflax/training/evaluate.py",
    "prediction = prediction.reshape(-1)[:size]",
    "prediction = prediction.reshape(-1)",
    ("tests/training/evaluate_test.py", "-k", "plain_loop"),
  ),
  Fault(
    "damaged checkpoint files are not noticed",
    "fflax/training/checkpoint.py",
    "if _digest(file) != digest:",
    "if not digest:",
    ("tests/training/checkpoint_test.py",),
  ),
  Fault(
    "a resumed run loses the checkpoint's own row",
    "fflax/training/metrics.py",
    'if row["step"] <= step]',
    'if row["step"] < step]',
    ("tests/training/metrics_test.py",),
  ),
  Fault(
    "int8 results without the input's scale",
    "fflax/core/int8.py",
    "* (x8.scale * w8.scale)",
    "* w8.scale",
    ("tests/core/int8_test.py", "-k", "dense_equals_numpy"),
  ),
  Fault(
    "attacks see int8 gradients rounded at one scale for the batch",
    "fflax/core/int8.py",
    "  if seeds is None:\n    dx =",
    "  if False:\n    dx =",
    ("tests/core/int8_test.py", "-k", "whole_gradient"),
  ),
  Fault(
    "a part of the batch cuts through a view",
    "fflax/training/step.py",
    "if views.shape[0] % network.groups:",
    "if False:",
    ("tests/training/step_test.py", "-k", "impossible"),
  ),
  Fault(
    "stochastic rounding that only rounds down",
    "fflax/core/quantize.py",
    "v = low + (noise < v - low).astype(v.dtype)",
    "v = low",
    ("tests/core/quantize_test.py", "-k", "rounds_up"),
  ),
  Fault(
    "rounding noise that neighbours in seed share, shifted",
    "fflax/core/quantize.py",
    "* jnp.uint32(0x7FEB352D) ^ seed[1]",
    "* jnp.uint32(0x7FEB352D)",
    ("tests/core/quantize_test.py", "-k", "shifted"),
  ),
  Fault(
    "look-ahead hands lambda times the gradient on",
    "fflax/training/lookahead_sweep.py",
    "    above = rung.pull((one, quiet, above))[1]",
    "    above = rung.pull((one, quiet, used[-1] * above))[1]",
    ("tests/training/lookahead_test.py", "-k", "convex_combination"),
  ),
  Fault(
    "scalar look-ahead counts a layer's own slope twice",
    "fflax/training/lookahead_sweep.py",
    "lambdas[i] * later, rung.silent[1]",
    "lambdas[i] * (later + rung.slope), rung.silent[1]",
    ("tests/training/lookahead_test.py", "-k", "later_slopes"),
  ),
  Fault(
    "stored weights move to the nearest value",
    "fflax/training/weight_store.py",
    'rounding="stochastic", noise=noise, scale',
    "scale",
    ("tests/training/weight_store_test.py", "-k", "unbiased"),
  ),
  Fault(
    "gradient states go through the optimiser",
    "fflax/training/optimizers.py",
    "new[name] = update - params[name]",
    "new[name] = update",
    ("tests/training/optimizers_test.py", "-k", "gradient_states"),
  ),
  Fault(
    "products count the rows of the right operand twice",
    "fflax/analysis/products.py",
    "macs = math.prod(out) * math.prod(left[axis] for axis in contracted)",
    "macs = math.prod(out) * math.prod(left[axis] for axis in contracted) ** 2",
    ("tests/analysis/cost_test.py", "-k", "matrix_product"),
  ),
  Fault(
    "PGD leaves the ball",
    "fflax/analysis/robustness.py",
    "x = jnp.clip(x + step_size * jnp.sign(gradient(key, x)), low, high)",
    "x = jnp.clip(x + step_size * jnp.sign(gradient(key, x)), 0.0, 1.0)",
    ("tests/analysis/robustness_test.py", "-k", "pgd"),
  ),
  Fault(
    "the deployed answer's gradient stops between the layers",
    "fflax/training/sweeps.py",
    "  return out, hand_on_views(run.method, out, False, None)\n",
    "  return out, lax.stop_gradient(hand_on_views(run.method, out, False, None))\n",
    ("tests/analysis/robustness_test.py", "-k", "every_method"),
  ),
  Fault(
    "an attack climbs the own class's score",
    "fflax/analysis/robustness.py",
    "return jnp.max(others, axis=1) - own[:, 0]",
    "return jnp.max(scores, axis=1) - own[:, 0]",
    ("tests/analysis/robustness_test.py", "-k", "hand"),
  ),
  Fault(
    "forgetting looks at the diagonal alone",
    "fflax/analysis/continual.py",
    "np.max(a[:-1, :-1], axis=0)",
    "np.diag(a)[:-1]",
    ("tests/analysis/continual_test.py",),
  ),
  Fault(
    "classes to come are answers",
    "experiments/studies/increments.py",
    "left = np.full(scores.shape[1], -np.inf)",
    "left = np.zeros(scores.shape[1])",
    ("tests/experiments/increments_test.py", "-k", "by_hand"),
  ),
  Fault(
    "the optimiser remembers the task before",
    "experiments/studies/increments.py",
    "for s, o in zip(state.layers, layers, strict=True)",
    "for s, o in zip(state.layers, [s.opt_state for s in state.layers], strict=True)",
    ("tests/experiments/increments_test.py", "-k", "anew"),
  ),
  Fault(
    "classes outside of the loss are pushed away",
    "fflax/core/losses.py",
    "return jnp.where(jnp.broadcast_to(here, scores.shape), scores, -1e9)",
    "return scores",
    ("tests/methods/hyperspherical_networks_test.py", "-k", "still"),
  ),
  Fault(
    "the running mean of hyperspherical features is not taken off",
    "fflax/methods/hyperspherical.py",
    'return z - stats["mean"][None, :] if "mean" in stats else z',
    "return z",
    ("tests/methods/hyperspherical_oracle_test.py", "-k", "running"),
  ),
  Fault(
    "similarities of what is not centred",
    "fflax/core/similarity.py",
    "  x = x - jnp.mean(x, axis=1, keepdims=True)\n",
    "",
    ("tests/core/similarity_test.py",),
  ),
  Fault(
    "predsim does not weigh its cross-entropy",
    "fflax/methods/local_losses.py",
    "loss = (1 - beta) * jnp.mean(",
    "loss = jnp.mean(",
    ("tests/methods/local_losses_oracle_test.py", "-k", "predsim"),
  ),
  Fault(
    "Fano's bound forgets that wrong answers differ",
    "fflax/analysis/information.py",
    "+ error * np.log2(num_classes - 1)",
    "",
    ("tests/analysis/information_test.py",),
  ),
  Fault(
    "an accumulated update counts as one batch of the schedule",
    "fflax/training/optimizers.py",
    "lambda count: rate(count * k)",
    "lambda count: rate(count)",
    ("tests/training/optimizers_test.py", "-k", "accumulated"),
  ),
  Fault(
    "p-bits are drawn again by all that reads them",
    "fflax/core/pbits.py",
    "word = computed_once(lambda: draw(seeds[0], v, config), _never(seeds))",
    "word = draw(seeds[0], v, config)",
    ("tests/core/branches_test.py",),
  ),
  Fault(
    "nothing holds the second run of a layer back",
    "fflax/training/rematerialize.py",
    "return in_branch(surely(witness), lambda: jax.vjp(f, *args)[1](cotangents))",
    "return jax.vjp(f, *args)[1](cotangents)",
    ("tests/training/rematerialize_test.py",),
  ),
  Fault(
    "a stage's batch is dropped out as the first step's",
    "fflax/training/stages.py",
    "key, read, plain = step_key(state.key, state.step), list(message.read), message.plain",
    "key, read, plain = step_key(state.key, 0), list(message.read), message.plain",
    ("tests/training/pipeline_test.py", "-k", "ordinary_run"),
  ),
  Fault(
    "every device of a pipeline in one program draws as the first one",
    "fflax/training/spmd_pipeline.py",
    "(at(i, own), message, here * each)",
    "(at(i, own), message, here * 0)",
    ("tests/training/pipeline_test.py", "-k", "ordinary_run"),
  ),
)


class Verdict(enum.Enum):
  """What the tests said of a fault."""

  CAUGHT = "caught"
  MISSED = "MISSED"
  BROKEN = "BROKEN"


class Result(NamedTuple):
  """`detail` is one line; `output` what pytest printed."""

  verdict: Verdict
  detail: str
  output: str = ""


def make_tree(scratch: pathlib.Path) -> pathlib.Path:
  """A fresh copy of what the tests need, beside the other copies in `scratch`."""
  tree = pathlib.Path(tempfile.mkdtemp(prefix="tree_", dir=scratch))
  ignore = shutil.ignore_patterns(".*")  # bytecode is copied too: it knows when its source changed
  for name in COPIED:
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    elif (ROOT / name).exists():
      shutil.copy(ROOT / name, tree / name)
  return tree


def plant(fault: Fault, tree: pathlib.Path) -> str | None:
  """Writes the fault into `tree`; returns why it cannot, or None."""
  path = tree / fault.file
  if not path.is_file():
    return f"{fault.file} does not exist"
  source = path.read_text()
  count = source.count(fault.old)
  if count != 1:
    return f"{fault.old!r} stands {count} times in {fault.file}, not once"
  if fault.new == fault.old:
    return "the fault changes nothing"
  path.write_text(source.replace(fault.old, fault.new))
  return None


def environment(tree: pathlib.Path) -> dict[str, str]:
  """`tree` before the checkout; what `make test` has compiled there is not compiled again."""
  compiled = next((ROOT / ".cache").glob("jax-*"), tree.parent / "compiled")  # see conftest.py
  changes = {
    "PYTHONPATH": str(tree),
    "PYTHONDONTWRITEBYTECODE": "1",
    "JAX_COMPILATION_CACHE_DIR": str(compiled),
  }
  return {**os.environ, **changes}


def run_tests(
  tree: pathlib.Path, tests: tuple[str, ...], *options: str, timeout: int = TIMEOUT_SECONDS
) -> tuple[int | None, str]:
  """pytest's exit code (None if it took too long) and output in `tree`."""
  command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", ""]
  try:
    done = subprocess.run(
      [*command, *options, *tests],
      cwd=tree,
      env=environment(tree),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      timeout=timeout,
    )
  except subprocess.TimeoutExpired:
    return None, ""
  return done.returncode, done.stdout


def try_fault(scratch: pathlib.Path, fault: Fault) -> Result:
  """Plants one fault in a fresh copy and runs its tests there."""
  tree = make_tree(scratch)
  if reason := plant(fault, tree):
    return Result(Verdict.BROKEN, reason)
  code, output = run_tests(tree, fault.tests, "-x")
  last = output.strip().splitlines()[-1] if output.strip() else ""
  if code == 1:
    return Result(Verdict.CAUGHT, last)
  if code == 0:
    return Result(Verdict.MISSED, last, output)
  reason = "took too long" if code is None else f"pytest ended with exit code {code}"
  return Result(Verdict.BROKEN, f"{reason}; {last}", output)


def selection(every: Collection[tuple[str, ...]]) -> tuple[str, ...]:
  """pytest arguments for all of `every` in one run: each file with its own `-k` expression."""
  chosen = []
  for file, *options in every:
    name = pathlib.PurePath(file).name  # a test has the names of its module and itself
    chosen.append(f"{name} and ({options[1]})" if options else name)
  files = dict.fromkeys(file for file, *_ in every)
  return (*files, "-k", " or ".join(f"({one})" for one in chosen))


def check_import(tree: pathlib.Path) -> str | None:
  """Why tests in `tree` would not see a fault: Python imports another copy. Else None."""
  command = [sys.executable, "-c", "import fflax.random as module; print(module.__file__)"]
  done = subprocess.run(command, cwd=tree, env=environment(tree), capture_output=True, text=True)
  if pathlib.Path(done.stdout.strip()).resolve().is_relative_to(tree.resolve()):
    return None
  return f"the copy is not what Python imports: {done.stdout.strip()}{done.stderr}"


def check_clean(scratch: pathlib.Path, faults: list[Fault], jobs: int) -> str | None:
  """Why a catch would prove nothing (the tests fail without a fault too), or None."""
  tree = make_tree(scratch)
  if reason := check_import(tree):
    return reason
  tests = selection(dict.fromkeys(fault.tests for fault in faults))
  code, output = run_tests(
    tree, tests, "-n", str(jobs), "--dist", "worksteal", timeout=CLEAN_TIMEOUT_SECONDS
  )
  if code == 0:
    return None
  reason = "takes too long" if code is None else f"ends with exit code {code}"
  return f"without a fault, pytest {reason}\n{output}"


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description="Plant one-line faults; the tests must catch each.")
  parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="faults at a time")
  parser.add_argument("--only", default="", help="only faults whose description or file has it")
  parser.add_argument("--list", action="store_true", help="list the faults and leave")
  options = parser.parse_args(arguments)

  faults = [f for f in FAULTS if options.only in f.what or options.only in f.file]
  if not faults:
    print(f"no fault matches --only={options.only}", file=sys.stderr)
    return 2
  if options.list:
    for fault in faults:
      print(f"{fault.file}: {fault.what}")
    return 0

  start = time.monotonic()
  results = []
  with (
    tempfile.TemporaryDirectory(prefix="fflax_mutation_") as name,
    concurrent.futures.ThreadPoolExecutor(max(1, options.jobs)) as pool,
  ):
    scratch = pathlib.Path(name)
    print(f"Running the tests of {len(faults)} faults without a fault", flush=True)
    if reason := check_clean(scratch, faults, max(1, options.jobs)):
      print(reason, file=sys.stderr)
      return 2
    verdicts = pool.map(functools.partial(try_fault, scratch), faults)
    for fault, result in zip(faults, verdicts, strict=True):
      results.append(result)
      print(f"{result.verdict.value:7} {fault.file}: {fault.what} ({result.detail})", flush=True)
      if result.output:
        print("".join(f"        {line}\n" for line in result.output.splitlines()[-15:]), end="")
  counts = {verdict: sum(r.verdict is verdict for r in results) for verdict in Verdict}
  print(
    f"{counts[Verdict.CAUGHT]} of {len(faults)} faults caught in {time.monotonic() - start:.0f} s"
  )
  return 2 if counts[Verdict.BROKEN] else 1 if counts[Verdict.MISSED] else 0


if __name__ == "__main__":
  sys.exit(main())
