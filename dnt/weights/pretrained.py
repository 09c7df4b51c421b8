"""Loads pretrained weights and their preprocessing from one string, `config.train.init_from`."""

import functools
import hashlib
import logging
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dnt import buckets, checkpoints, errors, models, trees
from dnt import config as schema
from dnt import workdir as workdir_lib
from dnt.checkpoints import format
from dnt.config import implied, run_config, typed
from dnt.reporting import metric_names, terminal
from dnt.weights import hub, keras_files, names, torch_files
from dnt.weights import preprocessing as preprocessing_lib

_log = logging.getLogger(__name__)

FORMS = (
  "a dnt workdir (a folder or gs://<bucket>/<path>), '<file>.safetensors' (or .safetensors.index.json), "
  "'<file>.pth' (.pt, .bin, .ckpt, .pth.tar), '<file>.h5', '<file>.keras', 'tfjs:<dir>' or "
  "'hf:<owner>/<name>[@<revision>]'"
)


class _About(NamedTuple):
  """What is stored next to the weights.

  Attributes:
    preprocessing: of images.
    class_names: in the order of the head; empty: not named.
    architecture: timm's name; empty: not named.
    model_args: options with which timm builds the network.
    assumed: fields of the preprocessing that are only the usual ones, as nothing says which they are.
  """

  preprocessing: preprocessing_lib.Preprocessing
  class_names: tuple[str, ...]
  architecture: str = ''
  model_args: Mapping[str, Any] = types.MappingProxyType({})
  assumed: tuple[str, ...] = ()


class _Format(NamedTuple):
  """The readers for one kind of file or folder."""

  framework: str
  read: Callable[[pathlib.Path], torch_files.Content]
  about: Callable[[pathlib.Path, Mapping[str, Any]], _About]  # of what `read` found of the preprocessing, if it may
  files: Callable[[pathlib.Path], list[pathlib.Path]] = lambda path: [path]  # that hold the weights
  holds_preprocessing: bool = False  # whether these files may


class _Located(NamedTuple):
  """The format (None: a workdir) and the path of weights, and for those of a hub the commit, if it is known."""

  format: _Format | None
  path: pathlib.Path
  revision: str = ''


def _about_torch(path: pathlib.Path, inside: Mapping[str, Any]) -> _About:
  beside = preprocessing_lib.TimmConfig(path.with_name(hub.CONFIG), inside)
  return _About(beside.preprocessing, beside.class_names, beside.architecture, beside.model_args, beside.assumed)


def _about_h5(path: pathlib.Path, inside: Mapping[str, Any]) -> _About:
  del path, inside
  return _About(preprocessing_lib.KERAS, ())


def _about_tfjs(folder: pathlib.Path, inside: Mapping[str, Any]) -> _About:
  del inside
  return _About(preprocessing_lib.KERAS, keras_files.class_names(folder))


def _tensors_alone(
  read: Callable[[pathlib.Path], dict[str, np.ndarray]],
) -> Callable[[pathlib.Path], torch_files.Content]:
  return lambda path: torch_files.Content(read(path))


_PICKLE = _Format('torch', torch_files.read_pickle, _about_torch, holds_preprocessing=True)
_FILES = {
  '.safetensors': _Format('torch', _tensors_alone(torch_files.read_safetensors), _about_torch),
  '.safetensors.index.json': _Format(
    'torch', _tensors_alone(torch_files.read_index), _about_torch, torch_files.files_of_index
  ),
  '.pth': _PICKLE,
  '.pt': _PICKLE,
  '.bin': _PICKLE,
  '.ckpt': _PICKLE,
  '.tar': _PICKLE,  # .pth.tar: no archive, only what torch's first examples called it
  '.h5': _Format('keras', _tensors_alone(keras_files.read_h5), _about_h5),
  '.keras': _Format('keras', _tensors_alone(keras_files.read_keras), _about_h5),
}
_TFJS = _Format('keras', _tensors_alone(keras_files.read_tfjs), _about_tfjs, keras_files.files_of_tfjs)


class Source:
  """Pretrained weights named by one string. Each part is read at its first use, and only once.

  A program makes one source and passes it on. The weights need not exist before a part is used.

  Attributes:
    origin: the string.
  """

  def __init__(self, text: str, which: str = checkpoints.NEWEST):
    """Reads nothing yet.

    Args:
      text: one of `FORMS`.
      which: checkpoint of a workdir, as for `read_checkpoint`.
    """
    self.origin, self._which = text, which

  @functools.cached_property
  def _located(self) -> _Located:
    return _locate(self.origin)

  @property
  def workdir(self) -> pathlib.Path | None:
    """Returns the workdir of the run that the string names; None if it names weights from outside dnt.

    Raises:
      errors.InputError: there is nothing of this name.
    """
    return self._located.path if self._located.format is None else None

  @functools.cached_property
  def run_config(self) -> typed.Config:
    """Returns the resolved config of the run; only for a workdir.

    Raises:
      errors.InputError: the folder is not a workdir.
    """
    return read_run_config(self._located.path)

  @functools.cached_property
  def checkpoint(self) -> format.Parameters:
    """Returns the parameters and statistics of the run's checkpoint; only for a workdir.

    Raises:
      errors.InputError: the folder is not a workdir, or has no such checkpoint that is good.
    """
    return read_checkpoint(_check_workdir(self._located.path), self._which)

  @functools.cached_property
  def _about(self) -> _About:
    result, path, _ = self._located
    if result is None:
      data = self.run_config.data
      meta = {} if data.image_size else checkpoints.read_meta(path)
      return _About(preprocessing_lib.of_run(data, meta.get('image_shape', ())), ())
    return result.about(path, self._content.preprocessing if result.holds_preprocessing else {})

  @property
  def preprocessing(self) -> preprocessing_lib.Preprocessing:
    """Returns the image preprocessing; of weights, only a pickle is read for it, as it may hold it.

    Raises:
      errors.InputError: the weights do not exist, or what describes them is damaged; a pickle: as for `network`.
    """
    return self._about.preprocessing

  @property
  def assumed(self) -> tuple[str, ...]:
    """Returns the fields of `preprocessing` that are only the usual ones, as nothing says which they are."""
    return self._about.assumed

  @property
  def class_names(self) -> tuple[str, ...]:
    """Returns the class names in the order of the head; empty if the source has none."""
    if self.workdir:
      return tuple(self.checkpoint.meta['class_names'])
    return self._about.class_names

  @functools.cached_property
  def _content(self) -> torch_files.Content:
    """Reads the tensors of a file under their current names, and the architectures that it names."""
    result, path, _ = self._located
    assert result, 'only files have tensors'
    content = result.read(path)
    return content._replace(tensors=names.current_names(content.tensors, result.framework, self.origin))

  @functools.cached_property
  def _network(self) -> names.Network:
    result = self._located.format
    assert result, 'only files need this'
    said = [name for name in (self._about.architecture, *self._content.architectures) if name]
    network = names.identify(self._content.tensors, result.framework, self.origin, said)
    for options in (self._about.model_args, self._content.model_args):
      names.check_options(options, network, self.origin)
    if result.framework == 'torch' and not any(map(names.says_something, said)):
      _log.info(
        f'{self.origin}: nothing says which architecture it is, so {network.title} is taken from its tensors; '
        "networks of other layers with the same tensors, such as timm's resnetaa50, look the same in the file"
      )
    return network

  @property
  def network(self) -> Mapping[str, Any]:
    """Returns the values of `config.model` that describe the network of the weights.

    Raises:
      errors.InputError: the weights do not exist, a file is damaged or refused, or the tensor names match no network of
        dnt.
    """
    if self.workdir:
      of_the_run = schema.model_options('run')
      return {key: value for key, value in self.run_config.model.to_dict().items() if key not in of_the_run}
    return self._network.model

  @property
  def decisive(self) -> Mapping[str, Any]:
    """Returns the values of `config.model` that a network must have to compute what the weights were trained for.

    For a run, these are options of the role `function`; its weights show most others, and the rest may be tried.
    """
    if self.workdir:
      model = self.run_config.model
      return {key: model[key] for key in schema.model_options('function') if model[key] is not None}
    return self._network.model

  @functools.cached_property
  def variables(self) -> dict[str, Any]:
    """Returns `{'params': ..., 'batch_stats': ...}`, float32 numpy arrays, unrolled.

    Of a run that keeps an average they are averaged, as for `dnt.predict`. `check_model` and the network later check
    whether they fit.

    Raises:
      errors.InputError: as for `network`; or the number of class names beside the file differs from the number of
        classes.
    """
    if self.workdir:
      saved = self.checkpoint
      return saved.ema or {'params': saved.params, 'batch_stats': saved.batch_stats}
    named, network = len(self.class_names), self._network
    tensors = self._content.tensors
    if other := names.other_head(tensors, network):
      listed = errors.list_names(other)
      terminal.say_once(
        _log, f'{self.origin}: its head ({listed}) is not that of {network.title}, so its weights are taken without it'
      )
      tensors = {name: tensor for name, tensor in tensors.items() if name not in other}
    variables = names.to_variables(tensors, network, self.origin)
    del self._content  # most variables are copies of the tensors
    head = trees.flatten(variables).get(f'params/{names.HEAD}/kernel')
    if head is not None and named not in (0, head.shape[-1]):
      raise errors.InputError(
        f'{self.origin}: there are {named} class names, but the weights have {head.shape[-1]} classes'
      )
    return variables

  @property
  def absent(self) -> tuple[str, ...]:
    """Returns the framework's names of the tensors of a classifier that the weights lack; empty if they have one.

    Raises:
      errors.InputError: as for `variables`.
    """
    if self.workdir:
      return ()
    have = trees.flatten(self.variables)
    return tuple(
      tensor
      for path, tensor in self._network.tensors().items()
      if path.startswith(f'params/{names.HEAD}/') and path not in have
    )

  def describe(self) -> dict[str, Any]:
    """Returns what the weights are, in JSON values; reads the files once more.

    Returns:
      `origin`, the string; of a run, `step` of its checkpoint and `params_sha256` of the parameters in `variables` (if
      they are not averaged, it is that of its summary); else `sha256` of each file by its name, with the file that
      describes the weights, and from a hub the `revision` (a commit).

    Raises:
      errors.InputError: as for `variables`.
    """
    about: dict[str, Any] = {'origin': self.origin}
    found, path, revision = self._located
    if found is None:
      return about | {'step': self.checkpoint.step, 'params_sha256': trees.sha256(self.variables['params'])}
    files = found.files(path)
    beside = path.with_name(hub.CONFIG)
    if found.framework == 'torch' and beside.is_file():
      files.append(beside)
    about['sha256'] = {str(file.relative_to(files[0].parent)): _digest(file) for file in files}
    return about | ({'revision': revision} if revision else {})

  def release(self) -> None:
    """Frees the arrays that were read; a later use reads them again."""
    for name in ('_content', 'variables', 'checkpoint'):
      self.__dict__.pop(name, None)


def fill_model(model: typed.Model, source: Source) -> None:
  """Sets `config.model` to the network of the weights, but keeps the options that the user sets, see `models.is_left`.

  Args:
    model: the `model` section of a config, not locked.
    source: the weights.

  Raises:
    errors.InputError: as for `Source.network`.
  """
  for key, value in source.network.items():
    if key == 'name' or models.is_left(model, key):
      model[key] = value


def fill_data(data: typed.Data, source: Source) -> None:
  """Sets `config.data` to the preprocessing of the weights, but keeps the options that the user sets.

  A line says what the weights do not determine: a resize that dnt does not have, or all of it.

  Args:
    data: the `data` section of a config, not locked.
    source: the weights.

  Raises:
    errors.InputError: as for `Source.preprocessing`, or the weights take images that are not square.
  """
  unset = preprocessing_lib.open_options(data)
  if not unset:
    return
  given = source.preprocessing
  preprocessing_lib.fill(data, given)
  if data.eval_resize is None:
    terminal.say_once(
      _log,
      f'{source.origin} resizes in a way that dnt does not have (crop_mode {given.eval_resize!r}): evaluation uses '
      f'{implied.eval_resize(data)}; set config.data.eval_resize to choose',
    )
  if assumed := [key for key in unset if key in source.assumed]:
    crops = 'eval_crop' in assumed and data.eval_resize == 'center_crop'
    newer = '; its V2 weights want config.data.eval_crop=0.9655' if crops else ''
    terminal.say_once(
      _log,
      f'nothing in or beside {source.origin} says how its images are prepared: {", ".join(assumed)} of config.data '
      f"are those of torchvision's first weights (256 to 224 pixels, bilinear){newer}",
    )


def check_model(source: Source, model: typed.Model) -> None:
  """Checks that a network computes what the weights were trained for, as far as `Source.decisive` says it.

  Args:
    source: the weights.
    model: resolved `config.model`.

  Raises:
    errors.InputError: it computes something else; the message lists the options to set.
  """
  now = model.to_dict()
  family = source.decisive.get('name', model.name)
  if family != model.name:
    # The defaults of the other family, given only its name, stem and depth.
    other = schema.default().model
    other.update({'name': family, 'stem': source.decisive['stem'], 'depth': source.decisive['depth']})
    now |= {**models.resolved_options(other), 'stem': model.stem, 'depth': model.depth}
  wanted = names.differences(source.decisive, now)
  if wanted:
    raise errors.InputError(f'{source.origin} holds weights of another network than config.model; set {wanted}')


def _digest(path: pathlib.Path) -> str:
  try:
    with path.open('rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise errors.InputError(f'cannot read {path} ({error.strerror}), a file of the weights') from error


def _locate(text: str) -> _Located:
  if buckets.address(text):
    return _Located(None, buckets.local(text))
  kind, colon, where = text.partition(':')
  if colon and kind == 'hf':
    path, revision = hub.download(where)
    suffix = hub.INDEX.removeprefix('model') if path.name == hub.INDEX else '.safetensors'
    return _Located(_FILES[suffix], path, revision)
  if colon and kind == 'tfjs':
    return _Located(_TFJS, _existing(where, text, pathlib.Path.is_dir))
  kinds = [kind for suffix, kind in _FILES.items() if text.lower().endswith(suffix)]
  if kinds and not pathlib.Path(text).expanduser().is_dir():
    return _Located(kinds[0], _existing(text, text, pathlib.Path.is_file))
  return _Located(None, _existing(text, text, pathlib.Path.is_dir))


def _existing(where: str, text: str, is_there: Callable[[pathlib.Path], bool]) -> pathlib.Path:
  path = pathlib.Path(where).expanduser()
  if where and path.is_file() and not is_there(path):
    raise errors.InputError(
      f'{path} is there, but its suffix is none of those that weights have ({", ".join(_FILES)}); give it the suffix '
      'of its kind'
    )
  if not where or not is_there(path):
    raise errors.InputError(f'there is nothing at {path} (the weights {text!r}); valid: {FORMS}')
  return path


def read_checkpoint(workdir: pathlib.Path, which: str = checkpoints.NEWEST, best_metric: str = '') -> format.Parameters:
  """Reads the parameters and statistics of a checkpoint of a run.

  Args:
    workdir: the workdir of the run.
    which: newest (or last), best or a step.
    best_metric: as `config.checkpoint.best_metric`, the metric of the best; without a split, on the split that ranks
      the checkpoints in the config of the run. Empty: the metric of that config.

  Raises:
    errors.InputError: there is no such checkpoint that is good.
  """
  if which in checkpoints.NEWEST_NAMES:
    return checkpoints.load_parameters(workdir)
  ranking = _ranking(read_run_config(workdir), best_metric) if which == checkpoints.BEST else ''
  return checkpoints.load_parameters(workdir, checkpoints.choose_step(workdir, which, ranking))


def _ranking(config: typed.Config, best_metric: str) -> str:
  """Returns the name of the metric that `best_metric` of `read_checkpoint` is in a run with this config."""
  split, slash, _ = config.checkpoint.best_metric.rpartition('/')
  if best_metric:
    config.checkpoint.best_metric = best_metric if '/' in best_metric else f'{split}{slash}{best_metric}'
  return metric_names.ranking(config)


def read_run_config(workdir: pathlib.Path) -> typed.Config:
  """Reads the resolved config of a run from its workdir.

  Raises:
    errors.InputError: the folder is not a workdir, or its config is damaged.
  """
  path = _check_workdir(workdir) / workdir_lib.CONFIG
  config = run_config.get_config(str(path))
  if (config.model.num_classes or 0) < 1:  # a run sets it
    raise errors.InputError(f'{path} is damaged: it lacks a model.num_classes above 0')
  return config


def _check_workdir(folder: pathlib.Path) -> pathlib.Path:
  if not (folder / workdir_lib.CONFIG).is_file():
    raise errors.InputError(
      f'{buckets.name(folder)} is no workdir of a dnt run (it has no {workdir_lib.CONFIG}); valid: {FORMS}'
    )
  return folder
