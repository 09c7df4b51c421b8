"""From a compare config to its runs: one training config a variant and seed, each checked before anything is run."""

import copy
import dataclasses
import json
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ml_collections

from dnt import config as schema
from dnt import errors, models, recorded

REQUESTED = 'requested.json'  # in a run's workdir: its config before data and model filled it in
FAILURE = 'failure.json'  # in the workdir of a run that failed: why
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_-]*')
_LENGTH = ('train.steps', 'train.epochs')  # of a run; the one that is given counts


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """One variant with one seed.

  Attributes:
    variant: its name.
    seed: of the run.
    config: as it is asked for, before data and model fill it in.
    workdir: of the run.
  """

  variant: str
  seed: int
  config: ml_collections.ConfigDict
  workdir: pathlib.Path

  @property
  def name(self) -> str:
    return f'{self.variant} seed {self.seed}'


def make(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, form: str = '', given: Collection[str] = ()
) -> tuple[Run, ...]:
  """The runs in their order: every variant with the first seed, then with the next.

  Args:
    config: a compare config, validated.
    workdir: of the comparison; a run's is `<workdir>/<variant>/seed<k>`.
    form: of `config.forms`; empty: base as it is.
    given: keys (`'section.key'`) of base that the command line set: they win over the form.

  Raises:
    errors.InputError: no variants, an unknown form, or a variant or form with a name, key or value that is not valid.
  """
  if not config.variants:
    raise errors.InputError('config.variants is empty; name at least one variant in the config file')
  kept = {*given, *(_LENGTH if set(_LENGTH) & set(given) else ())}
  bases = {'': config.base}
  for name in config.forms:
    what = f'form {name!r}'
    changes = _changes(config.forms, name, what)
    bases[name] = override(config.base, {key: value for key, value in changes.items() if key not in kept}, what)
  if form not in bases:
    raise errors.unknown('form', form, config.forms)
  variants = {}
  for name in config.variants:
    what = f'variant {name!r}'
    if not _NAME.fullmatch(name):
      raise errors.InputError(f'{what} is a folder too: its name must be of letters, digits, _ and -')
    changes = _changes(config.variants, name, what)
    if 'seed' in changes:
      raise errors.InputError(f'{what} must not set seed; config.seeds does')
    variants[name] = override(bases[form], changes, what)
    _check_model(variants[name], what)
  return tuple(
    Run(name, seed, override(variant, {'seed': seed}, name), workdir / name / f'seed{seed}')
    for seed in config.seeds
    for name, variant in variants.items()
  )


def choose(runs: Sequence[Run], only: Collection[str]) -> tuple[Run, ...]:
  """The runs of some variants; of all, when none is named.

  Raises:
    errors.InputError: an unknown variant.
  """
  known = dict.fromkeys(run.variant for run in runs)
  for name in only:
    if name not in known:
      raise errors.unknown('variant in --only', name, known)
  return tuple(run for run in runs if not only or run.variant in only)


def check_data(runs: Sequence[Run]) -> None:
  """Reads what the runs will read, each data set once, so that a missing one is told before the first is trained.

  Raises:
    errors.InputError: a source, split or file that is missing or damaged; names the first run that needs it.
  """
  from dnt import experiment  # jax is slow to import, and a comparison that is finished needs none

  seen = set()
  for run in runs:
    needs = json.dumps([run.config.data.to_dict(), run.config.eval.splits])
    if needs not in seen:
      seen.add(needs)
      try:
        experiment.load_data(run.config, run.config.eval.splits)
      except errors.InputError as error:
        raise errors.InputError(f'{run.name}: {error}') from None


def override(config: ml_collections.ConfigDict, changes: Mapping[str, Any], what: str) -> ml_collections.ConfigDict:
  """A copy of a training config with some values changed; of `train.steps` and `train.epochs` the changed one counts.

  Args:
    config: a training config.
    changes: `'section.key'` to value.
    what: makes the changes, for the message.

  Raises:
    errors.InputError: an unknown key, with the nearest one, or a value that is not valid.
  """
  changed = copy.deepcopy(config)
  known = dict(schema.options())
  if 'train.epochs' in changes:
    changed.train.steps = None
  for key, value in changes.items():
    if key not in known:
      raise errors.unknown(f'config key in {what}', key, known)
    try:
      recorded.set_value(changed, key, value)
    except (TypeError, ValueError):
      kind = known[key].type.__name__
      raise errors.InputError(f'{what}: {key} must be {kind}, not {type(value).__name__} ({value!r})') from None
  try:
    schema.validate(changed)
  except errors.InputError as error:
    raise errors.InputError(f'{what}: {error}') from None
  return changed


def is_finished(run: Run) -> bool:
  """Whether the run needs no more steps.

  Raises:
    errors.InputError: it is finished, or has come to a checkpoint, with another config; names what differs.
  """
  finished = bool((summary(run) or {}).get('finished'))
  if not finished and not any((run.workdir / 'checkpoints').glob('[0-9]*')):
    return False
  different = _differences(run)
  if different is None:
    raise errors.InputError(f'{run.workdir} holds a run that no comparison started; name another --workdir')
  if different:
    raise errors.InputError(
      f'{run.workdir} holds a run of another config: {", ".join(different)}; delete that folder to run it anew, take '
      'the old values, or name another --workdir'
    )
  return finished


def is_comparable(run: Run) -> bool:
  """Whether the run was started, with the config that it has now."""
  return _differences(run) == []


def _differences(run: Run) -> list[str] | None:
  """What differs between the config that the run was started with and that of now; None: it was not started."""
  stored = _read(run.workdir / REQUESTED)
  if stored is None:
    return None
  known = dict(schema.options())
  default, old, new = (
    recorded.flatten(config, known) for config in (_as_json(schema.default()), stored, _as_json(run.config))
  )
  old = default | old  # what an older version did not have ran as its default
  return [f'{key} was {old[key]!r} and is now {new[key]!r}' for key in new if new[key] != old[key]]


def _as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  return json.loads(json.dumps(config.to_dict()))


def summary(run: Run) -> dict[str, Any] | None:
  """What the run's `summary.json` says; None without one."""
  return _read(run.workdir / 'summary.json')


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise errors.InputError(f'{path} is not JSON ({error}); delete its folder to run it anew') from error


def _changes(named: Mapping[str, Any], name: str, what: str) -> Mapping[str, Any]:
  changes = named[name]
  if not isinstance(changes, Mapping):
    raise errors.InputError(f"{what} must be {{'section.key': value, ...}}, not {changes!r}")
  return changes


def _check_model(config: ml_collections.ConfigDict, what: str) -> None:
  try:
    models.check(config.model)
  except errors.InputError as error:
    raise errors.InputError(f'{what}: {error}') from None
