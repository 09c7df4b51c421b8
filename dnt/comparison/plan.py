"""Plans the runs of a compare config: one training config per variant and seed, each checked before any run starts.

A variant with `train.init_from = 'variant:<name>'` starts from the weights of another variant's run with the same seed.
"""

import contextlib
import copy
import dataclasses
import fnmatch
import json
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dnt import config as schema
from dnt import errors, files, models
from dnt import workdir as workdir_lib
from dnt.checkpoints import format
from dnt.config import changes as changes_lib
from dnt.config import checks, implied, older, overrides, run_config, typed
from dnt.weights import names, preprocessing

VARIANT = 'variant:'  # before the name of a variant in train.init_from
RUNS = 10_000  # most runs of a comparison
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.-]*')
_SEED = re.compile(r'seed(0|[1-9]\d*)')
_LENGTH = ('train.steps', 'train.epochs')  # the length of a run; the option that is set counts


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """Describes one variant with one seed.

  Attributes:
    variant: its name.
    seed: seed of the run.
    config: the requested config, before data and model fill it in.
    workdir: the workdir of the run.
    source: the run whose weights it starts from, if its variant names another one.
  """

  variant: str
  seed: int
  config: typed.Config
  workdir: pathlib.Path
  source: 'Run | None' = None

  @property
  def name(self) -> str:
    return f'{self.variant} seed {self.seed}'


def make(
  config: typed.Comparison, workdir: pathlib.Path, form: str = '', given: Collection[str] = ()
) -> tuple[Run, ...]:
  """Returns the runs in their order: every variant with the first seed, then with the next.

  Variants keep the order of the config, except that a variant from which others start comes before these.

  Args:
    config: a compare config, validated.
    workdir: workdir of the comparison; the workdir of a run is `<workdir>/<variant>/seed<k>`.
    form: a form of `config.forms`; empty: base without changes.
    given: keys (`'section.key'`) of base that the command line set: they take precedence over the form.

  Raises:
    errors.InputError: there are no variants, the form is unknown, or a variant or form has an invalid name, key or
      value; an option that a variant sets has no effect in it; a variant starts from one that is unknown, has another
      network, or starts from it in turn.
  """
  if not config.variants:
    raise errors.InputError('config.variants is empty; name at least one variant in the config file')
  kept = _with_replaced(given, config.base.data.source)
  bases = {'': config.base}
  folder = {'data.dir': config.base.data.dir} if 'data.dir' in given else {}  # no form replaces what was given
  for name in config.forms:
    what = f'form {name!r}'
    changes = {key: value for key, value in _changes(config.forms, name, what).items() if key not in kept}
    bases[name] = schema.override(config.base, changes | folder, what)
  if form not in bases:
    raise errors.unknown('form', form, config.forms)
  old = _is_old(workdir)
  variants = {}
  for name in config.variants:
    what = f'variant {name!r}'
    if not _NAME.fullmatch(name):
      raise errors.InputError(f'{what} names a folder: the name must consist of letters, digits, _, - and .')
    if name in workdir_lib.COMPARISON:
      raise errors.InputError(f'{what} has the name of a file of the comparison; give it another name')
    changes = _changes(config.variants, name, what)
    if 'seed' in changes:
      raise errors.InputError(f'{what} must not set seed; set config.seeds instead')
    variants[name] = schema.override(bases[form], changes, what)
    if old:
      older.begin(variants[name])
    _check(variants[name], changes, what)
    if ':' in variants[name].model.name:  # the runs are other processes, which must find the module too
      variants[name].model.update(models.resolved_options(variants[name].model))
  if len(variants) * len(config.seeds) > RUNS:
    raise errors.InputError(
      f'{len(variants):,} variants with {len(config.seeds):,} seeds are more than {RUNS:,} runs: lower the number of '
      'config.seeds or config.variants'
    )
  sources = {name: _source(name, variants) for name in variants}
  runs: dict[tuple[str, int], Run] = {}
  for seed in config.seeds:
    for name in _ordered(sources):
      seeded = schema.override(variants[name], {'seed': seed}, name)
      source = runs.get((sources[name], seed))
      runs[name, seed] = Run(name, seed, seeded, workdir / name / f'seed{seed}', source)
  return tuple(runs.values())


def check_given(config: typed.Comparison, chosen: Sequence[Run], given: Collection[str]) -> None:
  """Checks that each option of base that the command line set has an effect in one of the chosen variants.

  Args:
    config: the compare config.
    chosen: the runs of these variants, from `choose`.
    given: keys (`'section.key'`) of base that the command line set.

  Raises:
    errors.InputError: an option has none.
  """
  configs = {run.variant: run.config for run in chosen}
  for key in given:
    if key == 'seed':
      raise errors.InputError('config.base.seed has no effect: config.seeds lists the seeds of the runs')
    if all(key in _with_replaced(config.variants[name], each.data.source) for name, each in configs.items()):
      raise errors.InputError(f'config.base.{key} has no effect: every chosen variant sets it')
    problems = [schema.no_effect(each, key) for each in configs.values()]
    if all(problems):
      raise errors.InputError(f'in every chosen variant: {problems[0]}')


def _with_replaced(given: Collection[str], source: str) -> set[str]:
  """Returns these keys, of which one for the length of a run stands for the other too.

  So does `data.source` for `data.dir`, if the `source` that it is set to names a folder.
  """
  folder = ['data.dir'] if 'data.source' in given and overrides.names_folder(source) else []
  return {*given, *(_LENGTH if set(_LENGTH) & set(given) else ()), *folder}


def check_files(workdir: pathlib.Path) -> None:
  """Refuses a workdir with files that no comparison has written, and that one would replace, as those of a run.

  A comparison has begun there if one of its runs was started, or there are its results.

  Raises:
    errors.InputError: there is such a file.
  """
  there = [path for name in workdir_lib.COMPARISON if name != workdir_lib.OWNER and (path := workdir / name).is_file()]
  if not there or any(workdir.glob(f'*/seed*/{workdir_lib.REQUESTED}')):
    return
  with contextlib.suppress(errors.InputError):
    if {'comparison', 'variants', 'runs'} <= files.read_object(workdir / workdir_lib.RESULTS).keys():
      return
  workdir_lib.refuse_others(there[0], 'a comparison')


def _is_old(workdir: pathlib.Path) -> bool:
  """Returns whether a version that had no `data.hold_out` began the comparison; its other runs are made alike."""
  stored = (_read(path) for path in workdir.glob(f'*/seed*/{workdir_lib.REQUESTED}'))
  return any(older.held_nothing_out(each) for each in stored if each)


def add_seeds(config: typed.Comparison, workdir: pathlib.Path) -> typed.Comparison:
  """Returns a copy of a compare config with the seeds of all runs in the workdir, those of the config first.

  Raises:
    errors.InputError: there is a run of a seed that older versions took, and this one does not.
  """
  folders = [folder.name for name in config.variants for folder in (workdir / name).glob('seed*')]
  there = {int(match[1]) for match in map(_SEED.fullmatch, folders) if match}
  for seed in sorted(there):
    if problem := checks.seed(seed):
      raise errors.InputError(f'{workdir} holds runs of seed {seed}, which {problem}; move their folders away')
  result = copy.deepcopy(config)
  result.seeds = (*config.seeds, *sorted(there - set(config.seeds)))
  return result


def _source(name: str, variants: Mapping[str, typed.Config]) -> str:
  """Returns the variant from which a variant starts; '' if there is none."""
  config = variants[name]
  if not config.train.init_from.startswith(VARIANT):
    return ''
  source = config.train.init_from.removeprefix(VARIANT)
  if source not in variants:
    raise errors.unknown(f'variant in train.init_from of variant {name!r}', source, variants)
  if models.PRETRAINED in (variants[source].model.name, config.model.name):
    return source  # the run compares its network with that of the weights
  theirs, ours = (
    {**each.model.to_dict(), **models.resolved_options(each.model)} for each in (variants[source], config)
  )
  wanted = names.differences({key: theirs[key] for key in schema.model_options('weights', 'function')}, ours)
  if wanted:
    raise errors.InputError(f'variant {name!r} starts from {source!r}, which has another network; set {wanted}')
  return source


def _ordered(sources: Mapping[str, str]) -> list[str]:
  """Orders the variants so that each comes after the one from which it starts."""
  ordered: dict[str, None] = {}
  for name in sources:
    chain = [name]
    while source := sources[chain[-1]]:
      if source in chain:
        raise errors.InputError(f'variant {source!r} starts from itself: {" from ".join([*chain, source])}')
      chain.append(source)
    ordered |= dict.fromkeys(reversed(chain))
  return list(ordered)


def choose(runs: Sequence[Run], only: Collection[str]) -> tuple[Run, ...]:
  """Returns the runs of the named variants and those from which they start; all runs if none is named.

  Args:
    runs: from `make`.
    only: names, or patterns with `*` and `?`.

  Raises:
    errors.InputError: a variant is unknown, or a pattern matches none.
  """
  known = dict.fromkeys(run.variant for run in runs)
  for name in only:
    if not fnmatch.filter(known, name):
      raise errors.unknown('variant in --only', name, known)
  chosen = {run for run in runs if not only or any(fnmatch.fnmatchcase(run.variant, name) for name in only)}
  for run in reversed(runs):  # a run comes after the one from which it starts
    if run in chosen and run.source:
      chosen.add(run.source)
  return tuple(run for run in runs if run in chosen)


def check_data(runs: Sequence[Run], done: Collection[Run] = (), ranking: str = '') -> None:
  """Reads the data of all runs, each data set once, so that missing data is reported before the first run trains.

  Args:
    runs: the runs to come.
    done: finished runs, which must have been trained on the same images.
    ranking: the metric that ranks the variants; empty: any.

  Raises:
    errors.InputError: a source, split or file is missing or damaged, the images have changed, or no evaluated split has
      the metric that ranks; the message names the first run.
  """
  from dnt.training import datasets, scores

  read: dict[str, tuple[Run, Mapping[str, Any]]] = {}
  for run in (*runs, *done):
    config = _before_its_source(run)
    needs = json.dumps([config.data.to_dict(), config.eval.splits, config.train.init_from])
    if run in done:
      images = _images(run)
    elif needs not in read:
      try:
        data = datasets.load(config, config.eval.splits, test=True)
        images = data.fingerprint()
      except errors.InputError as error:
        raise errors.InputError(f'{run.name}: {error}') from None
      reasons = [scores.why_not_measured(ranking, source) for source in data.evaluation.values()]
      if reasons and all(reasons):
        raise errors.InputError(
          f'{run.name}: the first of config.columns ranks the variants, and {reasons[0]}; choose another metric'
        )
    else:
      continue
    other, theirs = read.setdefault(needs, (run, images)) if images else (run, {})
    for split in images:
      if theirs.get(split, images[split]) != images[split]:
        raise errors.InputError(
          f'{run.name} was trained on other images than {other.name}: {split} of {config.data.source} has changed. Put '
          f'the old images back, delete {run.workdir} to run it again, or give another --workdir'
        )


def _images(run: Run) -> Mapping[str, Any]:
  """Returns the fingerprint of each split that a run was trained on; {} if nothing says it."""
  directory = run.workdir / workdir_lib.CHECKPOINTS
  return format.newest_meta(directory, format.steps_in(directory)).get('data', {})


def _before_its_source(run: Run) -> typed.Config:
  """Returns what is known of a run's config before its source runs exist, with their network and preprocessing."""
  if not run.source:
    return run.config
  given, config = _before_its_source(run.source), copy.deepcopy(run.config)
  config.train.init_from, config.model.name = given.train.init_from, given.model.name
  preprocessing.fill(config.data, preprocessing.of_run(given.data))
  return config


def is_finished(run: Run) -> bool:
  """Returns whether the run needs no more steps.

  Raises:
    errors.InputError: the run finished or saved a checkpoint with another config; the message names the differences.
  """
  finished = bool((summary(run) or {}).get('finished'))
  if not finished and not any((run.workdir / workdir_lib.CHECKPOINTS).glob('[0-9]*')):
    return False
  different = _differences(run)
  if different is None:
    raise errors.InputError(f'{run.workdir} holds a run that no comparison started; give another --workdir')
  if different:
    raise errors.InputError(
      f'{run.workdir} holds a run of another config: {", ".join(different)}; delete that folder to run it again, use '
      'the old values, or give another --workdir'
    )
  return finished


def is_comparable(run: Run) -> bool:
  """Returns whether the run was started with its current config."""
  return _differences(run) == []


def _differences(run: Run) -> list[str] | None:
  """Returns the differences between the run's config at its start and its current config; None if it never started.

  Options that change only how a run computes are free, as at a resume.
  """
  stored = _read(run.workdir / workdir_lib.REQUESTED)
  if stored is None:
    return None
  old, new = run_config.parse(stored, run.workdir / workdir_lib.REQUESTED), schema.copy_unlocked(run.config)
  older.leave_open(old, new, stored)
  for config in (old, new):
    config.optim.update(implied.rule(config.optim))
  found = [str(change) for change in changes_lib.find(old, new) if change.on_resume != schema.FREE]
  if not _images(run):  # else they are compared themselves, wherever they are
    found += [
      f'data.{key} was {old.data[key]!r} and is now {new.data[key]!r}'
      for key in ('source', 'dir')
      if old.data[key] != new.data[key] and not any(each.startswith(f'data.{key} ') for each in found)
    ]
  if run.source:
    given, now = _read(run.workdir / workdir_lib.SOURCE), source_weights(run)
    if given != now:
      found.append(f'params_sha256 of {run.source.name} was {given!r} and is now {now!r}')
  return found


def source_weights(run: Run) -> str | None:
  """Returns the digest of the weights from which a run starts; None until the run that trains them is finished."""
  result = summary(run.source) if run.source else None
  return result['params_sha256'] if result and result.get('finished') else None


def summary(run: Run) -> dict[str, Any] | None:
  """Returns the contents of the run's `summary.json`; None if there is none.

  Raises:
    errors.InputError: the file is damaged or cannot be read.
  """
  path = run.workdir / workdir_lib.SUMMARY
  try:
    return files.read_object(path) if path.exists() else None
  except errors.InputError as error:
    raise errors.InputError(f'{error}; delete it, and the run writes it again') from error


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise errors.InputError(f'{path} is not JSON ({error}); delete its folder to run it again') from error


def _changes(named: Mapping[str, Any], name: str, what: str) -> Mapping[str, Any]:
  changes = named[name]
  if not isinstance(changes, Mapping):
    raise errors.InputError(f"{what} must be {{'section.key': value, ...}}, not {changes!r}")
  return changes


def _check(config: typed.Config, changes: Mapping[str, Any], what: str) -> None:
  try:
    models.check(config.model)
    schema.check_given(config, changes)
  except errors.InputError as error:
    raise errors.InputError(f'{what}: {error}') from None
