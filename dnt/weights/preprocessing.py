"""The image preprocessing that belongs to a network's weights; it fills in options that a config leaves unset."""

import dataclasses
import json
import logging
import math
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

from dnt import config as schema
from dnt import errors
from dnt.config import implied, typed

_log = logging.getLogger(__name__)
RESIZES = schema.SCHEMA['data']['eval_resize'].choices
INTERPOLATIONS = schema.SCHEMA['data']['interpolation'].choices
# timm's crop_mode, and the value of config.data.eval_resize that does the same; timm has more modes.
_FROM_TIMM = {'center': 'center_crop', 'squash': 'squash'}
# What timm calls the fields of `Preprocessing`; whoever gives a fraction to crop means the center.
_FIELDS = {
  'image_size': {'input_size'},
  'eval_resize': {'crop_mode', 'crop_pct'},
  'eval_crop': {'crop_pct'},
  'interpolation': {'interpolation'},
  'mean': {'mean'},
  'std': {'std'},
}
_TO_TIMM = {ours: theirs for theirs, ours in _FROM_TIMM.items()}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """Preprocessing of RGB images; the fields are options of `config.data`.

  Attributes:
    image_size: pixels per side; None keeps the size of the images. Or (height, width) that differ, which dnt does not
      have.
    eval_crop: fraction of the side that the center crop keeps.
    interpolation: a value of `config.data.interpolation`; None if the run is older than the option.
    mean: per channel, in [0, 1].
    std: per channel, in [0, 1].
    eval_resize: one of `RESIZES`, or a `crop_mode` of timm that dnt does not have, in words.
  """

  image_size: int | tuple[int, int] | None
  eval_crop: float
  interpolation: str | None
  mean: tuple[float, ...]
  std: tuple[float, ...]
  eval_resize: str


# The preprocessing of torchvision, and what timm takes for the values that its file lacks (`resolve_data_config`).
IMAGENET = Preprocessing(224, 0.875, 'bilinear', (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 'center_crop')
TIMM = dataclasses.replace(IMAGENET, interpolation='bicubic')
# keras.applications subtracts (103.939, 116.779, 123.68) from blue, green and red, and does not divide.
KERAS = Preprocessing(
  224, 0.875, 'bilinear', (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3, 'center_crop'
)


def of_run(data: typed.Data, image_shape: Sequence[int] = ()) -> Preprocessing:
  """Returns the evaluation preprocessing of a run.

  Args:
    data: the `data` section of the run's resolved config.
    image_shape: (H, W, C) of its images; their size if they are square and the config leaves it open; (): not known.
  """
  size, resize = data.image_size, implied.eval_resize(data)
  if size is None and image_shape and image_shape[0] == image_shape[1]:
    size = image_shape[0]
  return Preprocessing(size, data.eval_crop, data.interpolation, tuple(data.mean), tuple(data.std), resize)


def fill(data: typed.Data, given: Preprocessing) -> None:
  """Sets the unset options of a config's `data` section; keeps the options that the user set.

  It leaves `eval_resize` unset, and `eval_crop` with it, if dnt does not have the resize mode of the weights.

  Raises:
    errors.InputError: the weights take images that are not square.
  """
  unset = open_options(data)
  if 'image_size' in unset and isinstance(given.image_size, tuple):
    height, width = given.image_size
    raise errors.InputError(
      f'the weights take images of {height} x {width} pixels, and dnt resizes images to squares; set '
      'config.data.image_size to the pixels per side'
    )
  if 'eval_resize' in unset and given.eval_resize not in RESIZES:
    unset = [key for key in unset if key not in ('eval_resize', 'eval_crop')]
  for key in unset:
    if (value := getattr(given, key)) is not None:
      data[key] = value


def open_options(data: typed.Data) -> list[str]:
  """Returns the names of the options that `fill` fills in."""
  keys = [key for key in ('image_size', 'eval_resize', 'eval_crop', 'interpolation') if data[key] is None]
  # mean without std, or std without mean, raises an error where they are used.
  return keys + ([] if data.mean or data.std else ['mean', 'std'])


class TimmConfig:
  """Reads timm's `config.json`, which is next to the weights on the hub."""

  def __init__(self, path: pathlib.Path, options: Mapping[str, Any] = types.MappingProxyType({})):
    """Reads the file; a missing file, or one from another program, counts as empty.

    Args:
      path: the file.
      options: those of the training program that the weights hold. The file wins; what has not the form of timm's, as
        in other programs, counts as not said.

    Raises:
      errors.InputError: the file is not JSON or cannot be read.
    """
    self._path, self._inside = path, _of_options(options)
    try:
      content = json.loads(path.read_bytes())
    except FileNotFoundError:
      content = {}
    except (OSError, ValueError) as error:
      raise errors.InputError(f'cannot read {path} ({error}), which describes the preprocessing of images') from error
    content = content if isinstance(content, dict) else {}
    if isinstance(content.get('architecture'), str):  # timm's older files hold the values without a section
      content = {'pretrained_cfg': content} | content
    self._content = content if 'pretrained_cfg' in content else {}

  @property
  def assumed(self) -> tuple[str, ...]:
    """Returns the fields of `preprocessing` that neither a file of timm nor the weights say."""
    return () if self._content else tuple(field for field, names in _FIELDS.items() if not names & self._inside.keys())

  @property
  def architecture(self) -> str:
    """Returns timm's name of the architecture; empty if the file has none."""
    return str(self._content.get('architecture') or '')

  @property
  def class_names(self) -> tuple[str, ...]:
    """Returns the class names in the order of the head; empty if the file has none.

    As for timm, those of the file's top level count first, and `labels` is an older name of `label_names`. A line says
    if their numbers have gaps, so that they are not used.
    """
    named = _label_names(self._content)
    if not named:
      named = _label_names(self._content.get('pretrained_cfg'))
      if self._content.get('num_classes') not in (None, len(named)):  # of the weights that these were trained from
        return ()
    if isinstance(named, dict):
      numbered = {int(key): name for key, name in named.items() if key.isdecimal()}
      if sorted(numbered) != list(range(len(named))):
        _log.info(f'{self._path}: label_names are not used, because they do not name each of the classes 0, 1, 2, ...')
        return ()
      named = [numbered[index] for index in range(len(named))]
    return tuple(map(str, named))

  @property
  def model_args(self) -> Mapping[str, Any]:
    """Returns the options with which timm builds the network, but for its defaults."""
    found = self._content.get('model_args')
    return found if isinstance(found, dict) else {}

  @property
  def preprocessing(self) -> Preprocessing:
    """Returns the preprocessing in the file and the weights, with timm's defaults for what both lack.

    Without a file the defaults are torchvision's.

    Raises:
      errors.InputError: the values in the file are invalid.
    """
    section = self._content.get('pretrained_cfg', {})
    if not isinstance(section, dict):
      raise errors.InputError(f'{self._path}: pretrained_cfg is damaged (it is {section!r})')
    beside = _said(section)
    inside = {key: value for key, value in self._inside.items() if key not in beside}
    return _parse(inside | beside, TIMM if self._content else IMAGENET, f'{self._path}: pretrained_cfg')


def _said(section: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a section of timm's without its empty values, which count as absent, as for timm."""
  return {key: value for key, value in section.items() if not _is_empty(value)}


def _of_options(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what options of a training program say, by the names in timm's file, without what has another form."""
  size: Any = options.get('img_size' if options.get('input_size') is None else 'input_size')
  if _are_numbers([size], 1):
    size = (size, size)
  if _are_numbers(size, 2):
    size = (3, *size)
  found: dict[str, Any] = {'input_size': size if _are_numbers(size, 3) and min(size) >= 1 else None}
  for key in ('mean', 'std'):
    values: Any = options.get(key)
    values = [*values] * 3 if _are_numbers(values, 1) else values  # for timm, one is that of every channel
    found[key] = values if _are_numbers(values, 3) else None
  crop: Any = options.get('crop_pct')
  mode, interpolation = options.get('crop_mode'), options.get('interpolation')
  found['crop_pct'] = crop if _are_numbers([crop], 1) and 0 < crop <= 1 else None
  found['crop_mode'] = mode if isinstance(mode, str) else None
  found['interpolation'] = interpolation if interpolation in INTERPOLATIONS else None
  return _said(found)


def _are_numbers(values: Any, count: int) -> bool:
  """Whether a list or tuple holds so many finite numbers."""
  if not isinstance(values, list | tuple) or len(values) != count:
    return False
  return all(isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each) for each in values)


def _is_empty(value: Any) -> bool:
  return value is None or (isinstance(value, str | int | float | list | tuple | dict) and not value)


def _parse(cfg: Mapping[str, Any], usual: Preprocessing, where: str) -> Preprocessing:
  """Returns the preprocessing in timm's words, and the usual one for what they lack; `where` names them in errors."""
  try:
    size = cfg.get('input_size', (3, usual.image_size, usual.image_size))
    mode, crop = cfg.get('crop_mode', _TO_TIMM[usual.eval_resize]), float(cfg.get('crop_pct', usual.eval_crop))
    if mode == 'squash' and crop != 1:
      mode = f'squash with crop_pct {crop:g}'  # to the size divided by crop_pct, of which it takes the center
    result = Preprocessing(
      image_size=int(size[1]) if size[1] == size[2] else (int(size[1]), int(size[2])),
      eval_crop=crop,
      interpolation=cfg.get('interpolation', usual.interpolation),
      mean=tuple(map(float, cfg.get('mean', usual.mean))),
      std=tuple(map(float, cfg.get('std', usual.std))),
      eval_resize=_FROM_TIMM.get(mode, mode),
    )
  except (TypeError, ValueError, AttributeError, LookupError, OverflowError) as error:
    raise errors.InputError(f'{where} is damaged ({error})') from error
  if result.interpolation not in INTERPOLATIONS:
    raise errors.unknown(f'interpolation in {where}', str(result.interpolation), INTERPOLATIONS)
  return result


def _label_names(section: Any) -> list[str] | dict[str, str]:
  """Returns the class names in a section of timm's file, in the order of the head or by their number; [] if none."""
  named = section.get('label_names') or section.get('labels') if isinstance(section, dict) else None
  return named if isinstance(named, list | dict) else []


def to_timm(given: Preprocessing, shape: tuple[int, int, int]) -> dict[str, Any]:
  """Returns the preprocessing entries of timm's `pretrained_cfg`.

  Args:
    given: the preprocessing of the run.
    shape: (H, W, C) of the network's input image.
  """
  height, width, channels = shape
  return {
    'input_size': [channels, height, width],
    'interpolation': given.interpolation,
    'crop_pct': given.eval_crop if given.eval_resize == 'center_crop' else 1.0,
    'crop_mode': _TO_TIMM[given.eval_resize],
    'mean': list(given.mean),
    'std': list(given.std),
  }
