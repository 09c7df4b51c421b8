"""Saves and restores checkpoints under `<workdir>/checkpoints` with one Orbax manager; a restore is strict.

`format` defines what a checkpoint contains. If a run has several processes, all must make every public call, and all
skip a checkpoint that one of them finds damaged. They must share the file system of the workdir.
"""

import contextlib
import dataclasses
import errno
import functools
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from dnt import buckets, errors, files, trees
from dnt import workdir as workdir_lib
from dnt.checkpoints import digests, format
from dnt.config import measures, typed
from dnt.parallel import multihost
from dnt.reporting import metric_names

NEWEST, BEST = 'newest', 'best'  # names for a checkpoint of a run
NEWEST_NAMES = (NEWEST, 'last')  # the second is that of summary.json
_BESIDE = 2**17  # bytes of a small checkpoint that are not values
_DAMAGED = (*multihost.KINDS, format.DamagedError)  # the problems of a read
_log = logging.getLogger(__name__)


def better(best_metric: str, value: float | None, than: float | None) -> bool:
  """Returns whether a metric improved, see `measures`; a value that is not finite is never better."""
  if value is None or not math.isfinite(value):
    return False
  less = metric_names.parse(best_metric).quantity in measures.LESS_IS_BETTER
  return than is None or (value < than if less else value > than)


class Checkpoints:
  """Saves and restores the checkpoints of one run; keeps the newest `config.keep` and the best by `best_metric`."""

  def __init__(self, workdir: str | os.PathLike, config: typed.Checkpoint, best_metric: str = ''):
    """Checks that checkpoints can be written.

    Args:
      workdir: directory of the run, created if missing.
      config: the `checkpoint` section of the config.
      best_metric: name of the metric that ranks the checkpoints, see `metric_names.ranking`; empty: none is the best.

    Raises:
      errors.InputError: the workdir is not writable, or the processes do not share it.
    """
    self._directory = workdir_lib.checkpoints(workdir)
    self._config, self._best_metric = config, best_metric
    self._metrics: dict[int, Mapping[str, float]] = {}  # by step
    _check_writable(self._directory)
    self._place = _identify(self._directory)

  @functools.cached_property
  def _manager(self):
    # The first save makes the manager, so that the first step of a run does not wait for the import.
    import orbax.checkpoint as ocp

    class Manager(ocp.CheckpointManager):
      def reached_preemption(self, step: int) -> bool:
        return False  # the loop uses its own dense counter; a second one would change the agreed step

    format.silence_background()
    registry = ocp.DefaultCheckpointHandlerRegistry()
    state_handler = ocp.PyTreeCheckpointHandler()
    meta_handler = ocp.JsonCheckpointHandler(filename=format.META_FILE)
    registry.add('state', ocp.args.PyTreeSave, state_handler)
    registry.add('state', ocp.args.PyTreeRestore, state_handler)
    registry.add('meta', ocp.args.JsonSave, meta_handler)
    registry.add('meta', ocp.args.JsonRestore, meta_handler)
    self._metrics |= {step: format.metrics_of(self._directory / str(step)) for step in format.steps_in(self._directory)}
    return Manager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        save_decision_policy=ocp.checkpoint_managers.FixedIntervalPolicy(1),  # the loop decides when to save
        preservation_policy=_Preserve(self._kept),
        cleanup_tmp_directories=True,
        save_root_metadata=False,
      ),
      handler_registry=registry,
    )

  @property
  def latest_step(self) -> int | None:
    """The newest step on disk or being written, or None if there is none."""
    return max(self.steps(), default=None)

  def steps(self) -> list[int]:
    """Lists the steps on disk or being written, in ascending order."""
    if '_manager' in self.__dict__:
      return sorted(self._manager.all_steps())
    return _list_steps(self._directory)

  def newest_on_disk(self) -> int | None:
    """Returns the newest step that this process sees on disk; not collective, so that it can follow an error."""
    return max(format.steps_in(self._directory), default=None)

  def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """Starts to write a checkpoint; returns once the state is copied, so that its buffers may be donated.

    A step that was saved before stays as it is. A checkpoint cannot be the best before `rate` adds its metrics.

    Args:
      step: number of completed optimizer steps.
      state: pytree of arrays; `save` first checks that it is finite.
      meta: JSON values.

    Raises:
      errors.RunError: the state is not finite (nothing is written, earlier checkpoints stay), or an earlier checkpoint
        could not be written.
    """
    import orbax.checkpoint as ocp

    if step in self.steps():
      return
    leaves = format.flatten(state)
    self._check_room(leaves)
    sums = digests.inspect(leaves)
    bad = [path for path, digest in sums.items() if not digest.finite]
    if bad:
      raise errors.RunError(f'the state after step {step} is not finite and was not saved ({errors.list_names(bad)})')
    envelope = format.make_envelope(meta, leaves, sums)
    self._metrics[step] = {}
    self._write(
      self._manager.save,
      step,
      args=ocp.args.Composite(state=ocp.args.PyTreeSave(trees.unflatten(leaves)), meta=ocp.args.JsonSave(envelope)),
    )

  def rate(self, step: int, meta: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Replaces the meta of a saved checkpoint and ranks it; deletes one that is then neither new nor the best.

    It waits until the checkpoint is on disk. A process that is killed before leaves it as `save` wrote it.

    Args:
      step: a step that is saved.
      meta: JSON values.
      metrics: metrics of the state by name.

    Raises:
      errors.RunError: the checkpoint could not be written.
    """
    self.wait()
    ranking = metrics.get(self._best_metric)
    replace = functools.partial(format.replace_meta, self._directory / str(step), meta, metrics, ranking)
    multihost.on_lead(lambda: self._write(replace))
    steps = self._manager.all_steps()  # the manager reads the metrics on disk when it is made
    self._metrics[step] = dict(metrics)
    for each in set(steps) - self._kept(steps):
      self._write(self._manager.delete, each)

  def restore_latest(self, abstract_state: Callable[[int], Any]) -> format.Restored | None:
    """Restores the newest undamaged checkpoint; moves newer damaged ones aside and logs one line for each.

    Args:
      abstract_state: returns the pytree of the state of a step. Its leaves are `jax.ShapeDtypeStruct`s (or arrays) with
        the shardings to restore onto, which may differ from those at the save.

    Returns:
      The state and its meta, or None if nothing was ever saved.

    Raises:
      errors.InputError: the checkpoint belongs to another network or optimizer, or all checkpoints are damaged; in both
        cases nothing on disk changes.
    """
    if not self.steps():
      return None
    result = _newest_good(self._directory, _reader(abstract_state))
    for step, reason in result.damaged.items():
      aside = self._move_aside(step)
      _log.info(f'checkpoint {step} is damaged ({reason}); moved to {aside}; continuing from step {result.step}')
    if result.damaged and '_manager' in self.__dict__:
      self._manager.reload()
    return result.value

  def find_misfit(self, abstract_state: Callable[[int], Any]) -> format.Misfit | None:
    """Returns how the newest checkpoint differs from the state to restore, or None; it reads no array.

    Args:
      abstract_state: as for `restore_latest`; it needs no shardings.
    """
    for step in reversed(self.steps()):
      with contextlib.suppress(format.DamagedError):  # a restore reports it
        return format.find_misfit(self._directory / str(step), abstract_state(step))
    return None

  def wait(self) -> None:
    """Waits until all started saves are on disk.

    Raises:
      errors.RunError: a checkpoint could not be written.
    """
    if '_manager' in self.__dict__:
      self._write(self._manager.wait_until_finished)

  def close(self) -> None:
    """Waits like `wait` and ends the writer threads."""
    if '_manager' in self.__dict__:
      self._write(self._manager.close)

  def _kept(self, steps: Sequence[int]) -> set[int | None]:
    return {*sorted(steps)[-self._config.keep :], self._best_of(steps)}

  def _best_of(self, steps: Sequence[int]) -> int | None:
    return _best({step: self._metrics.get(step, {}) for step in steps}, self._best_metric)

  def _check_room(self, leaves: Mapping[str, jax.Array]) -> None:
    # If only the writer threads found these two errors, they would cause pages of tracebacks or minutes of waiting.
    def check():
      if buckets.address(self._directory):
        return
      # Beside the values: what describes them, in files of whole blocks.
      needed = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values()) + _BESIDE
      try:
        free = shutil.disk_usage(self._directory).free
      except OSError as error:
        gone = f'{self._directory} no longer exists ({error.strerror}), so no checkpoint can be written'
        raise errors.RunError(gone) from error
      if free < needed:
        raise errors.RunError(
          f'a checkpoint needs {math.ceil(needed / 1e5) / 10} MB and the disk of {self._directory} has '
          f'{math.floor(free / 1e5) / 10} MB left; '
          'make room and run the same command again'
        )

    multihost.on_lead(check)

  def _move_aside(self, step: int) -> pathlib.Path:
    aside = self._directory / f'{step}.damaged'
    if multihost.is_lead():
      number = 2
      while aside.exists():
        aside = self._directory / f'{step}.damaged-{number}'
        number += 1
      (self._directory / str(step)).rename(aside)
    multihost.barrier('dnt: moved a damaged checkpoint aside')  # no process lists the directory earlier
    return aside

  def _write(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    try:
      call(*args, **kwargs)
    except Exception as error:
      raise errors.RunError(f'a checkpoint could not be written to {self._directory}: {_reason(error)}') from error
    # A writer thread may have made the directory anew after the workdir was moved away.
    if _identify(self._directory) != self._place:
      raise errors.RunError(f'{self._directory} was moved or removed while the run wrote to it')


def _identify(directory: pathlib.Path) -> tuple[int, int] | None:
  """Returns what stays the same of a directory until it is moved away or removed; None if there is none.

  In a bucket there are no directories.
  """
  if buckets.address(directory):
    return None
  try:
    stat = directory.stat()
  except OSError:
    return None
  return stat.st_dev, stat.st_ino


def _reason(error: BaseException) -> str:
  """Returns what is wrong in one line."""
  full = os.strerror(errno.ENOSPC)
  if full in str(error):  # TensorStore adds paths and places in its code
    return f'{full}; make room and run the same command again'
  return errors.first_line(error)


@dataclasses.dataclass(frozen=True)
class _Preserve:
  """Orbax's preservation policy: keeps the newest `keep` checkpoints and the best one."""

  kept: Callable[[Sequence[int]], set[int | None]]

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = self.kept(steps)
    return [step in kept for step in steps]


class ReadOnly:
  """Read-only access to the checkpoints of a run: never creates, moves or removes anything on disk."""

  def __init__(self, workdir: str | os.PathLike):
    """Sets the directory of the run, which need not exist.

    Args:
      workdir: directory of the run.
    """
    self._directory = workdir_lib.checkpoints(workdir)

  def steps(self) -> list[int]:
    """Lists the steps on disk, in ascending order."""
    return _list_steps(self._directory)

  def restore_latest(self, abstract_state: Callable[[int], Any]) -> format.Restored | None:
    """Restores like `Checkpoints.restore_latest`, but skips damaged checkpoints without moving them."""
    return _look(self._directory, _reader(abstract_state)) if self.steps() else None


def load_parameters(workdir: str | os.PathLike, step: int | None = None) -> format.Parameters:
  """Loads the parameters and batch statistics of another run, without its config or the classes that made it.

  It skips a damaged checkpoint for the one before and logs one line about it; nothing on disk changes.

  Args:
    workdir: workdir of a dnt run.
    step: step of the checkpoint; default: the newest.

  Raises:
    errors.InputError: there is no checkpoint or no such step, or it is damaged; without a step, all are.
  """
  directory = workdir_lib.checkpoints(workdir)
  steps = _list_steps(directory)
  if not steps:
    raise errors.InputError(f'there is no checkpoint in {directory}; give the workdir of a dnt run that saved one')
  if step is not None and step not in steps:
    raise errors.unknown(f'checkpoint in {directory}', str(step), map(str, steps))
  return _look(directory, format.read_parameters, only=step)


def read_meta(workdir: str | os.PathLike) -> dict[str, Any]:
  """Returns the `meta` of the newest checkpoint whose `meta` is not damaged, without its state; {} if there is none.

  Raises:
    errors.InputError: a checkpoint has a newer format, or may not be read.
  """
  directory = workdir_lib.checkpoints(workdir)
  return format.newest_meta(directory, _list_steps(directory))


def choose_step(workdir: str | os.PathLike, which: str, best_metric: str) -> int:
  """Returns the step of a checkpoint of another run.

  Args:
    workdir: workdir of a dnt run.
    which: `BEST` or a step.
    best_metric: name of the metric that ranks the checkpoints, see `metric_names.ranking`.

  Raises:
    errors.InputError: `which` is nothing of these, or no checkpoint has the metric.
  """
  directory = workdir_lib.checkpoints(workdir)
  steps = _list_steps(directory)
  if which != BEST:
    known = {str(step): step for step in steps}
    if which not in known:
      raise errors.unknown(f'checkpoint in {directory}', which, [NEWEST, BEST, *known])
    return known[which]
  best = _best({step: format.metrics_of(directory / str(step)) for step in steps}, best_metric)
  if best is None:
    where = buckets.name(workdir)
    problem = f'no checkpoint in {directory} has {best_metric}' if best_metric else f'no split of {where} ranks'
    raise errors.InputError(f'{problem}, so that no checkpoint is the best; use the {NEWEST}')
  return best


def _best(metrics: Mapping[int, Mapping[str, float]], best_metric: str) -> int | None:
  """Returns the first of the best steps by a metric, from the metrics of each step; None if no step has it."""
  best, value = None, None
  for step in sorted(metrics):
    if better(best_metric, metrics[step].get(best_metric), value):
      best, value = step, metrics[step][best_metric]
  return best


def _look(directory: pathlib.Path, read: Callable[[pathlib.Path], format.ReadBack], only: int | None = None) -> Any:
  """Returns the value that `_newest_good` finds; logs one line for each damaged checkpoint and changes no file."""
  result = _newest_good(directory, read, only)
  for bad, reason in result.damaged.items():
    _log.info(f'checkpoint {bad} in {directory} is damaged ({reason}); using step {result.step}')
  return result.value


@dataclasses.dataclass(frozen=True)
class _Found:
  """The newest good checkpoint, and the newer damaged ones with the reasons."""

  step: int
  value: Any
  damaged: dict[int, str]


def _newest_good(
  directory: pathlib.Path, read: Callable[[pathlib.Path], format.ReadBack], only: int | None = None, tries: int = 5
) -> _Found:
  """Finds the newest checkpoint that `read` accepts on all processes.

  Args:
    directory: directory of the checkpoints; it has at least one.
    read: reader from `format`, local to the process.
    only: if set, the only step to read.
    tries: how often to begin, as a run that goes on there removes older checkpoints while they are read.

  Raises:
    errors.InputError: this step is damaged, or all are; or it is removed meanwhile, or all are again and again; or a
      checkpoint cannot be read although it is not damaged; or the processes see different ones.
  """
  damaged, steps = {}, _list_steps(directory)
  for step in [only] if only is not None else reversed(steps):
    _check_shared(directory, step)
    problem, read_back = None, None
    try:
      read_back = read(directory / str(step))
    except (format.DamagedError, errors.InputError) as error:
      problem = error
    problem = multihost.agree(problem, _DAMAGED)
    if problem is None:
      assert read_back is not None  # all processes have read it, or `agree` would have returned a problem
      problem = multihost.agree(format.compare_digests(read_back), _DAMAGED)
      if problem is None:
        return _Found(step, read_back.value, damaged)
    if isinstance(problem, errors.InputError):
      raise problem
    now = _list_steps(directory)
    if only is None and now and (now[-1] > steps[-1] or step not in now):
      if tries > 1:
        return _newest_good(directory, read, tries=tries - 1)
      raise errors.InputError(
        f'the run that goes on in {directory} removes checkpoints faster than they can be read; raise its '
        'config.checkpoint.keep, or copy a checkpoint'
      )
    if only is not None and step not in now:
      raise errors.InputError(f'checkpoint {only} in {directory} was removed by the run that goes on there')
    damaged[step] = str(problem)
  if only is not None:
    others = [str(step) for step in steps if step != only]
    rest = f'use another: {errors.list_names(others)}' if others else 'give another run, as it has no other checkpoint'
    raise errors.InputError(
      f'checkpoint {only} in {directory} is damaged ({damaged[only]}). Restore it from a backup, or {rest}'
    )
  listed = '; '.join(f'{step}: {reason}' for step, reason in damaged.items())
  raise errors.InputError(
    f'every checkpoint in {directory} is damaged ({listed}). Restore them from a backup, give another --workdir, or '
    f'delete {directory} to start again'
  )


def _reader(abstract_state: Callable[[int], Any]) -> Callable[[pathlib.Path], format.ReadBack]:
  return lambda path: format.read_state(path, abstract_state(int(path.name)))


def _list_steps(directory: pathlib.Path) -> list[int]:
  """Lists the steps that the lead sees on disk, in ascending order; every process calls it.

  Raises:
    errors.InputError: there are steps, and a process does not see their directory.
  """
  steps = multihost.broadcast_from_lead(format.steps_in(directory))
  if steps:  # in a bucket there are no directories
    multihost.raise_any(None if buckets.address(directory) or directory.is_dir() else _not_shared(directory))
  return steps


def _check_shared(directory: pathlib.Path, step: int) -> None:
  """Checks that all processes see the same checkpoint, or each would go on with values of its own.

  Raises:
    errors.InputError: one sees another than the lead, or none.
  """
  mine = format.identify(directory / str(step))
  lead = multihost.broadcast_from_lead(mine)
  differs = mine != lead and None not in (mine, lead)  # that one cannot be read is reported by who reads it
  multihost.raise_any(_not_shared(directory) if differs else None)


def _check_writable(directory: pathlib.Path) -> None:
  def make():
    if not buckets.address(directory):
      files.make_workdir(directory.parent)
      directory.mkdir(exist_ok=True)

  multihost.on_lead(make)
  multihost.raise_any(None if multihost.sees_files_of_lead(directory) else _not_shared(directory))


def _not_shared(directory: pathlib.Path) -> errors.InputError:
  return errors.InputError(
    f'{directory.parent} does not hold the files of process 0; give all processes the same --workdir, on a file '
    'system that they share'
  )
