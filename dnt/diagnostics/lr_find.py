"""Runs the learning rate range test (Smith 2017, "Cyclical Learning Rates", section 3.3): trains while the rate grows.

The rate grows exponentially from `config.lr_find.start` to `end` over `steps` steps. The losses show at which rate the
network starts to learn and at which rate it diverges. The steps are training steps with another schedule, from the
newest checkpoint of the workdir, or from where a new run would start. The test does not change the run. The smoothing,
the end of a sweep and the suggestion `valley` are those of fastai's `lr_find`. While a group of entries is swept, all
other entries stay fixed, so that only the group affects the loss. A run whose `optim.learning_rate` is 'auto' begins
with a sweep of its own and uses one of its suggestions, see `choose`.
"""

import contextlib
import logging
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from dnt import checkpoints, errors, files, trees
from dnt import config as schema
from dnt import workdir as workdir_lib
from dnt.config import typed
from dnt.data import pipeline
from dnt.models import depth, freeze
from dnt.optim import rows, schedules
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost, ownership
from dnt.reporting import plots, tables, terminal
from dnt.training import budget, datasets, experiment, initialize, open_options, precompile, resume, steps

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_log = logging.getLogger(__name__)
SMOOTHING = 0.98  # fraction of the old average that each step keeps
DIVERGED = 4  # a sweep ends if its smoothed loss exceeds the best one by this factor
IGNORED_START, IGNORED_END = 0.1, 5  # fraction of the sweep at its start, and steps at its end, that suggestions ignore
_MEANING = {'steepest': 'where the loss falls most steeply in the course', 'valley': 'the valley'}
REACH = 0.1  # fraction of the sweep's steps on either side of a step over which its slope is taken


class Sweep(NamedTuple):
  """Holds the result of one sweep, by step.

  Attributes:
    group: pattern of the entries whose rate grew; None: all entries.
    rates: float64 [n].
    losses: float64 [n].
    smoothed: float64 [n].
    stopped: '' if the sweep was complete; 'diverged', or 'not finite', which leaves out the step itself.
    suggestions: learning rates by `valley`, `steepest` and `minimum/10`; empty if the sweep ended too soon.
    learns: whether the loss fell by more than it differs from batch to batch; if not, the suggestions mean little.
  """

  group: str | None
  rates: np.ndarray
  losses: np.ndarray
  smoothed: np.ndarray
  stopped: str
  suggestions: dict[str, float]
  learns: bool


def run(config: typed.Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Sweeps the learning rate, of all entries or of each group of `config.lr_find.groups` alone.

  Writes `lr_find.json` and `lr_find.png`, and nothing else.

  Returns:
    The contents of the JSON: `step`, `new` (no checkpoint to start from), `learning_rate` of the config (0: auto) and
    `sweeps`.

  Raises:
    errors.InputError: the rate does not grow, a group matches no entry, a checkpoint belongs to another network or
      optimizer, the data does not fit, or another run owns the workdir.
  """
  check(config)
  with ownership.own(workdir):
    return _run(config, workdir)


def _run(config: typed.Config, workdir: pathlib.Path) -> dict[str, Any]:
  mesh = mesh_lib.make_mesh(config.mesh)
  mesh_lib.check_batch('config.train.batch_size', config.train.batch_size, mesh, config.train.accumulate)
  kept = resume.keep_open(config, resume.read(workdir))
  data = datasets.load(kept, (), workdir)
  base = experiment.make(open_options.resolve(kept, data), data.spec)
  budget.check_training(base, mesh)
  start = initialize.find(base, mesh, checkpoints.ReadOnly(workdir), data.weights)
  resume.check_network(base.config, resume.of_meta(start.history, workdir), workdir)
  state = initialize.make_state(base, mesh, start)
  partition = base.phase(int(state.step)).partition
  names = [base.entries[index].name for index in base.leaves.owners(partition)]
  for pattern in config.lr_find.groups:
    if not any(re.fullmatch(pattern, name) for name in names):
      raise errors.InputError(
        f'config.lr_find.groups: {pattern!r} matches the whole name of no entry that trains: {", ".join(names)}'
      )
  step, sweeps = int(state.step), []
  with contextlib.closing(pipeline.make_train_loader(base.config, data.train, mesh)) as loader:
    for group in config.lr_find.groups or (None,):
      sweeps.append(sweep(base, mesh, state, loader, group))
  return _record(workdir, sweeps, step, not start.history, schedules.peak_rate(config.optim))


def settle(run: experiment.Experiment, data: datasets.Data, mesh: Mesh, workdir: pathlib.Path) -> experiment.Experiment:
  """Returns the run with a learning rate: the rate of its config if it has one, else the rate that a sweep finds.

  The sweep starts where the run does and trains what its first phase trains. It leaves only the rate, `lr_find.json`
  and `lr_find.png`. A run that continues already has its rate, see `resume.keep_open`.

  Args:
    run: the experiment.
    data: its images, or their features, and its pretrained weights.
    mesh: the mesh of its devices.
    workdir: the workdir of the run.

  Raises:
    errors.InputError: the sweep ends before it can suggest a rate.
  """
  if run.config.optim.learning_rate != schema.AUTO:
    return run
  state = initialize.begin(run, mesh, initialize.load_start(run, workdir, data.weights))
  with contextlib.closing(pipeline.make_train_loader(run.config, data.train, mesh)) as loader:
    swept = sweep(run, mesh, state, loader)
  if not swept.suggestions:
    raise errors.InputError(
      'config.optim.learning_rate=auto runs a range test, which ended too soon to suggest a rate (the loss '
      f'{_ended_of(swept)}); set a rate, or start lower with config.lr_find.start'
    )
  method = choose(run)
  rate = swept.suggestions[method]
  doubt = '' if swept.learns else ', and hardly fell before; see lr_find.png'
  _record(workdir, [swept], 0, True, rate)
  _log.info(f'learning rate {rate:.3g}, {_MEANING[method]} of a range test (the loss {_ended_of(swept)}{doubt})')
  config = schema.copy_unlocked(run.config)
  with config.ignore_type():  # its current value is a word
    config.optim.learning_rate = rate
  return experiment.make(config, run.spec, run.phases[0].partition.skipped, run.trace)


def choose(run: experiment.Experiment) -> str:
  """Returns the suggestion that a run takes: 'steepest', or 'valley', which is smaller by a factor of 3 to 50.

  Parameters that start at random or at zero learn too little in a short run at the valley; pretrained ones lose what
  they know where the loss falls most steeply (benchmarks/RESULTS.md). A sweep of the head alone finds a rate for the
  head; pretrained entries that train later share it, unless `finetune.head_lr_mult` sets them apart. It does not if
  entries below the head are swept too, because these share it without that factor.

  Args:
    run: the experiment.
  """
  if not run.config.train.init_from:
    return 'steepest'
  head, params = frozenset({depth.head(run.table).name}), run.trace.variables['params']
  trained = [trees.flatten(phase.partition.split(params)[0]) for phase in run.phases]

  def is_pretrained(path):
    return not (freeze.is_below(path, head) or trees.is_named(path, run.config.finetune.reinit))

  # Not whole entries: norms of frozen ones may train.
  first, *later = [any(map(is_pretrained, paths)) for paths in trained]
  apart = run.config.finetune.head_lr_mult > 1 and all(freeze.is_below(path, head) for path in trained[0])
  return 'valley' if first or (any(later) and not apart) else 'steepest'


def check(config: typed.Config) -> None:
  """Checks the options of a sweep.

  Raises:
    errors.InputError: the rate does not grow.
  """
  options = config.lr_find
  if options.end <= options.start:
    raise errors.InputError(f'config.lr_find.end={options.end} must be above config.lr_find.start={options.start}')


def _record(
  workdir: pathlib.Path, sweeps: Sequence[Sweep], step: int, new: bool, learning_rate: float
) -> dict[str, Any]:
  """Writes the results of the sweeps and returns the contents of the JSON."""
  result = {
    'step': step,
    'new': new,
    'learning_rate': learning_rate,
    'sweeps': [
      {
        'group': each.group,
        'stopped': each.stopped,
        'suggestions': each.suggestions,
        'learns': each.learns,
        'learning_rate': each.rates.tolist(),
        'loss': each.losses.tolist(),
        'smoothed': each.smoothed.tolist(),
      }
      for each in sweeps
    ],
  }
  if multihost.is_lead():
    files.write_json(workdir / workdir_lib.LR_FIND, result)
    files.write(workdir / workdir_lib.LR_FIND_PLOT, plots.png(plot(sweeps, learning_rate)))
  return result


def sweep(
  run: experiment.Experiment, mesh: Mesh, state: steps.TrainState, loader: pipeline.Loader, group: str | None = None
) -> Sweep:
  """Trains from `state`, which it does not change, while the rate of a group grows.

  Args:
    run: the experiment; `config.lr_find` describes the sweep.
    mesh: the mesh of its devices.
    state: where to start, also in the data.
    loader: the loader of the training split.
    group: pattern that matches whole names of the entries to train; None: all entries train.
  """
  first, count = int(state.step), run.config.lr_find.steps
  train_step = make_train_step(run, first, group)
  longest = min(run.config.train.steps_per_dispatch, loader.max_steps(0))
  train_steps = steps.make_train_steps(train_step, loader.batch_at, longest)
  state = jax.tree.map(jnp.copy, state)
  jitted = precompile.jit_on_state(run, mesh, train_steps, state)
  program = compile_lib.ahead(
    jitted, state, loader.shapes(), np.int32(1), what='the compiled train step', remedy=budget.remedy(run.config, mesh)
  )
  line = terminal.StatusLine()
  rates, losses, stop, done = [], [], None, 0
  while done < count and stop is None:
    taken = min(longest, count - done, loader.max_steps(first + done))
    state, metrics = program(state, loader.arrays(first + done, taken), np.int32(taken))
    rates.extend(np.asarray(metrics['learning_rate'][:taken], np.float64))
    losses.extend(np.asarray(metrics['loss'][:taken], np.float64))
    done += taken
    stop = find_end(losses)
    line.update(f'range test {done}/{count}  learning rate {rates[-1]:.2g}  loss {losses[-1]:.4f}')
  line.close()
  stopped = ''
  if stop is not None:
    finite = math.isfinite(losses[stop])
    stopped = 'diverged' if finite else 'not finite'
    rates, losses = (values[: stop + 1 if finite else stop] for values in (rates, losses))
  rates, losses, smoothed = np.array(rates), np.array(losses), smooth(losses)
  suggestions = suggest(rates, smoothed, count)
  return Sweep(group, rates, losses, smoothed, stopped, suggestions, is_learning(losses, smoothed, count))


def make_train_step(run: experiment.Experiment, first: int, group: str | None = None) -> Callable:
  """Returns the run's train step with the sweep as its schedule.

  Args:
    run: the experiment.
    first: the step at which the sweep starts.
    group: as for `sweep`.
  """
  options = run.config.lr_find

  def schedule(step):
    done = (step - first) / (options.steps - 1)
    return jnp.asarray(options.start * (options.end / options.start) ** done, jnp.float32)

  phase = run.phase(first)
  optimizer = run.make_optimizer(phase.partitions, schedule)
  if group is not None:
    optimizer = train_only_group(optimizer, run.leaves, group)
  return run.make_step(phase.partition, optimizer, schedule)


def train_only_group(
  optimizer: optax.GradientTransformation, leaves: rows.Leaves, group: str
) -> optax.GradientTransformation:
  """Returns a chain with the same state that updates only the entries of a group.

  Args:
    optimizer: from `optim.chain.make`.
    leaves: all parameters.
    group: pattern of the whole names of the entries to update.
  """
  moves = {
    path: np.array([re.fullmatch(group, leaves.entries[index].name) is not None for index in place])
    for path, place in leaves.places.items()
  }

  def update(updates, state, params=None):
    moved: tuple[trees.Tree, optax.OptState] = optimizer.update(updates, state, params)

    def leaf(path, update):
      chosen = rows.along(jnp.asarray(moves[path]), update) if trees.is_scanned(path) else moves[path][0]
      return jnp.where(chosen, update, 0.0)

    return trees.map_with_path(leaf, moved[0]), moved[1]

  return optax.GradientTransformation(optimizer.init, update)


def smooth(losses: Sequence[float]) -> np.ndarray:
  """Returns the exponential average of the losses up to each step, divided by the sum of its weights."""
  average, smoothed = 0.0, []
  for index, loss in enumerate(losses, start=1):
    average = SMOOTHING * average + (1 - SMOOTHING) * loss
    smoothed.append(average / (1 - SMOOTHING**index))
  return np.array(smoothed)


def find_end(losses: Sequence[float]) -> int | None:
  """Returns the first step with a loss that is not finite, or a smoothed loss above `DIVERGED` times the best one."""
  best = math.inf
  for index, (loss, smoothed) in enumerate(zip(losses, smooth(losses), strict=True)):
    best = min(best, smoothed)
    if not math.isfinite(loss) or smoothed > DIVERGED * best:
      return index
  return None


def suggest(rates: np.ndarray, smoothed: np.ndarray, steps: int) -> dict[str, float]:
  """Returns suggested learning rates by method; empty for a sweep that ended too soon.

  - valley: half way down the longest valley of the losses (see `valley`),
  - steepest: where the loss falls fastest over the logarithm of the rate, over `REACH` to either side,
  - minimum/10: a tenth of the rate of the lowest loss.

  Args:
    rates: [n].
    smoothed: [n].
    steps: number of steps of the whole sweep.
  """
  rates, smoothed = rates[_used(steps)], smoothed[_used(steps)]
  if len(rates) < 3:
    return {}
  # From one step to the next, the slope is only the noise of a batch.
  reach = max(1, min(int(REACH * steps), (len(rates) - 1) // 2))
  slopes = (smoothed[2 * reach :] - smoothed[: -2 * reach]) / np.log(rates[2 * reach :] / rates[: -2 * reach])
  return {
    'valley': float(rates[valley(smoothed)]),
    'steepest': float(rates[reach + np.argmin(slopes)]),
    'minimum/10': float(rates[np.argmin(smoothed)] / 10),
  }


def is_learning(losses: np.ndarray, smoothed: np.ndarray, steps: int) -> bool:
  """Returns whether the smoothed loss fell by more than the losses of two neighbouring batches differ (the median).

  Args:
    losses: [n].
    smoothed: [n].
    steps: number of steps of the whole sweep.
  """
  used = smoothed[_used(steps)]
  return len(used) > 0 and bool(used[0] - used.min() > np.median(np.abs(np.diff(losses))))


def _used(steps: int) -> slice:
  return slice(int(IGNORED_START * steps), -IGNORED_END)


def valley(losses: Sequence[float] | np.ndarray) -> int:
  """Returns the index half way down the longest valley, a falling subsequence of the losses.

  It is that of fastai's `valley`, except for a fall of two losses, before which that would lie, and even before the
  first loss.

  Args:
    losses: float [n], n at least 1.
  """
  lengths = np.ones(len(losses), int)
  for index in range(1, len(losses)):
    lengths[index] = 1 + np.max(lengths[:index], where=np.asarray(losses[:index]) > losses[index], initial=0)
  end = int(np.argmax(lengths))
  length = int(lengths[end])
  first = end - length + 1  # of the fall, if it has no gaps
  return max(first - 1 + length // 3 + length // 6, first)


@plots.styled
def plot(sweeps: Sequence[Sweep], current: float) -> 'Figure':
  """Plots loss by learning rate, one panel per group, with the suggestions and the config's rate.

  Args:
    sweeps: at least one.
    current: `optim.learning_rate` of the config; 0: a range test has yet to find it.
  """
  columns = min(len(sweeps), 2)
  figure = plots.new_figure(10 if columns == 1 else 8.5 * columns, 6.2 * -(-len(sweeps) // columns))
  grid = list(figure.subplots(-(-len(sweeps) // columns), columns, squeeze=False).flat)
  for axes, each in zip(grid, sweeps, strict=False):
    axes.plot(each.rates, each.losses, color='#bbbbbb', linewidth=1.2, label='loss of a batch')
    axes.plot(each.rates, each.smoothed, color=plots.COLORS[0], linewidth=2.5, label='smoothed')
    # Draw smaller marks over larger ones: their positions may coincide.
    looks = zip(plots.COLORS[1:], 'osD', (20, 13, 7), strict=False)
    for (name, rate), (color, marker, size) in zip(each.suggestions.items(), looks, strict=False):
      height = np.interp(np.log(rate), np.log(each.rates), each.smoothed)
      look = {'color': color, 'markersize': size, 'markeredgecolor': 'white', 'linestyle': 'none'}
      axes.plot([rate], [height], marker=marker, label=f'{name}  {rate:.2g}', **look)
    if current:
      axes.axvline(current, color='#555555', linestyle=':', linewidth=1.5, label=f'config  {current:.2g}')
    axes.set_xscale('log')
    if len(each.rates):
      # Fit the axis to the values before the divergence, which may be of any size.
      low, lowest = each.losses.min(), int(np.argmin(each.smoothed))
      high = max(each.smoothed[: lowest + 1].max(), 1.5 * each.smoothed[lowest])
      margin = 0.06 * (high - low)
      axes.set_ylim(low - margin, high + margin)
    axes.set_title(f'{each.group or "all that trains"}: {_ended_of(each)}', loc='left', parse_math=False)
    axes.set_xlabel('learning rate')
    axes.set_ylabel('training loss')
    plots.tidy(axes)
    axes.legend(frameon=False)
  for axes in grid[len(sweeps) :]:
    axes.remove()
  return figure


def text(result: Mapping[str, Any]) -> str:
  """Formats the result as a table and one summary line."""
  names = ('valley', 'steepest', 'minimum/10')
  table = [('entries', *names, '')]
  for each in result['sweeps']:
    cells = [f'{each["suggestions"][name]:.2g}' if each['suggestions'] else '-' for name in names]
    table.append((each['group'] or 'all', *cells, _ended(each['stopped'], each['learning_rate'], each['smoothed'])))
  lines = [tables.text(table)]
  flat = [each['group'] or 'all' for each in result['sweeps'] if not each['learns']]
  if flat:
    lines.append(
      f'the loss hardly falls ({", ".join(flat)}): these suggestions mean little; is the network already trained?'
    )
  current = f'{result["learning_rate"]:.2g}' if result['learning_rate'] else schema.AUTO
  where = 'a new run' if result['new'] else f'step {result["step"]:,}'
  return '\n'.join([*lines, f'learning rates of {where}; config.optim.learning_rate is {current}'])


def _ended_of(swept: Sweep) -> str:
  return _ended(swept.stopped, swept.rates, swept.smoothed)


def _ended(stopped: str, rates: Sequence[float] | np.ndarray, smoothed: Sequence[float] | np.ndarray) -> str:
  """Describes how a sweep ended, in words."""
  if not len(rates):
    return f'{stopped} at once'
  if stopped:
    return f'{stopped} at rate {rates[-1]:.2g}'
  lowest = int(np.argmin(smoothed))
  return f'{"still falls at" if lowest == len(rates) - 1 else "rises from"} rate {rates[lowest]:.2g}'
