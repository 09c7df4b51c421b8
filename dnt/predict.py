"""Predicts the most likely classes of images, with a run or with pretrained weights alone.

  python -m dnt.predict --workdir=runs/mine --images=scans/new
  python -m dnt.predict --workdir=runs/mine --split=val --output=val.csv
  python -m dnt.predict --weights=hf:timm/resnet50.a1_in1k --images='photos/**/*.jpg' --top=3 --output=found.csv

The images are preprocessed as in an evaluation of the network. The program names and skips a file that it cannot read,
or for which the network gives no finite logits; the exit code is 2 if none is left. Ctrl-C writes the predictions so
far. A run is loaded from its newest checkpoint, or from the one that --checkpoint names, with the averaged weights if
the run keeps them (config.ema.decay). A row of the CSV is an image and one of its classes, with its true class if that
is known; the JSON also lists the skipped files. If --images is a folder of class folders (<class>/, or test/<class>/),
their names are the labels: the program also reports the accuracy and the results of each class, and the JSON the
confusion matrix. --split predicts the images of a split of the run's own data in the order of their loss, the largest
first: it shows the first ones, and --output lists all, with each loss. An image that has no file of its own is named by
its index in the split. As the order needs all of them, Ctrl-C then ends the program without a result.
"""

import contextlib
import csv
import io
import logging
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from dnt import cli, errors, files

if TYPE_CHECKING:
  from dnt.inference import labels as labels_lib
  from dnt.inference import network as network_lib
  from dnt.inference import predictions, splits

SHOWN = 20  # images of a split; the file lists all
_log = logging.getLogger('dnt.predict')  # not __name__, which is '__main__' in a program


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this program."""
  cli.define_path('workdir', 'Workdir of a run.', values)
  flags.DEFINE_string(
    'weights', None, 'Pretrained weights; valid values are those of config.train.init_from.', flag_values=values
  )
  flags.DEFINE_string('images', None, 'An image, a folder (with its subfolders) or a quoted glob.', flag_values=values)
  flags.DEFINE_string(
    'split', None, "Split of the run's data to predict, such as val or 'train[:500]'.", flag_values=values
  )
  flags.DEFINE_integer('top', 5, 'Number of classes to show for each image.', 1, flag_values=values)
  cli.define_path('output', 'File to write, .csv or .json.', values)
  flags.DEFINE_string(
    'class_names',
    None,
    'Text file of class names, one per line; default: the names in the run or weights.',
    flag_values=values,
  )
  cli.define_checkpoint(values)
  flags.DEFINE_integer('batch_size', 32, 'Images per batch.', 1, flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Reads the flags and predicts; prints lines of images, and finally their number and the output file."""
  requested = cli.model_source(values.workdir, values.weights)
  output = _check_flags(values)
  names = read_names(values.class_names) if values.class_names else None

  from dnt import config as schema
  from dnt import inference
  from dnt.inference import labels as labels_lib
  from dnt.parallel import compile as compile_lib
  from dnt.parallel import mesh as mesh_lib
  from dnt.parallel import signals
  from dnt.reporting import tables
  from dnt.training import report

  paths = inference.find(values.images) if values.images else ()
  compile_lib.enable_cache()
  mesh = mesh_lib.make_mesh(schema.default().mesh)
  mesh_lib.check_batch('--batch_size', values.batch_size, mesh)
  network = inference.load(requested, mesh, values.checkpoint)
  names = network.class_names if names is None else names
  if len(names) != len(network.class_names):
    raise errors.InputError(
      f'--class_names={values.class_names} holds {len(names)} names, but {requested} has '
      f'{len(network.class_names)} classes'
    )
  with contextlib.ExitStack() as held:
    if values.split:
      source = inference.load_split(network, values.split)
      count, whole = len(source), f'of {values.split}'
      ranked = inference.predict_split(network, mesh, source, values.batch_size, values.top)
      rows, unreadable, labels = _of_split(ranked, inference.paths_of(source), names, bool(output))
    else:
      count, whole = len(paths), f'at {values.images!r}'
      inference.say_trained_on(network, paths)
      labels = labels_lib.find(values.images, paths, names if values.class_names else None, network)
      batches = inference.predict(network, mesh, paths, values.batch_size, values.top)
      rows, unreadable = _collect(batches, paths, names, labels, held)
    if not rows:
      first = next(iter(unreadable.values()))
      raise errors.InputError(f'none of the {count} images {whole} can be predicted: {first}')
    predicted = {key: row.best[0].index for key, row in rows.items()}
    measured = labels_lib.measure(labels, predicted, len(names))
    if measured:
      _log.info(tables.text(report.class_table(names, measured.per_class)))
    if output:
      write(output, requested, network.step, values.split, list(rows.values()), unreadable, names, measured)
  parts = [_describe(len(rows), values.split, network, measured)]
  parts += [f'{len(unreadable)} skipped'] if unreadable else []
  if rest := count - len(rows) - len(unreadable):
    parts.append(f'stopped before the other {rest}')
  print(', '.join(parts) + (f'  {output}' if output else ''))
  if rest and (number := signals.received()):
    raise signals.Stopped(number)


def _check_flags(values: flags.FlagValues) -> pathlib.Path | None:
  """Returns the file to write, if there is one.

  Raises:
    errors.InputError: it is not said which images, or the file cannot be written.
  """
  if bool(values.images) == bool(values.split):
    given = 'not both' if values.split else 'one of them'
    raise errors.InputError(
      f'give {given}: --images=<image, folder or quoted glob>, or --split=<split of the data of the run>'
    )
  if values.split and not values.workdir:
    raise errors.InputError('--split is of the data of a run: it needs --workdir, not --weights')
  output = pathlib.Path(values.output) if values.output else None
  if output and output.suffix not in ('.csv', '.json'):
    raise errors.InputError(f'--output={output} must end in .csv or .json')
  if output and not output.parent.is_dir():
    raise errors.InputError(f'--output={output}: the folder {output.parent} does not exist')
  if output and output.is_dir():
    raise errors.InputError(f'--output={output} is a folder; give a file, such as {output / "predictions.csv"}')
  if output and (problem := files.why_not_writable(output.parent)):
    raise errors.InputError(f'--output={output} cannot be written ({problem}); give a file in another folder')
  return output


def _collect(
  batches: 'Iterable[predictions.Predictions]',
  paths: Sequence[str],
  names: Sequence[str],
  labels: Mapping[str, int],
  held: contextlib.ExitStack,
) -> tuple[dict[str, 'Row'], dict[str, str]]:
  """Shows each prediction as it comes, until the end, or the end of the batch at which a signal comes.

  Args:
    batches: the predictions.
    paths: the paths of all images.
    names: class names in the order of the network.
    labels: classes by path, for the images that have one.
    held: takes the signals from the first prediction on; before, a signal ends the program.

  Returns:
    The predictions by path, and the reasons by path why other files have none.
  """
  from dnt.parallel import signals
  from dnt.reporting import progress

  rows, unreadable = {}, {}
  width, line = max(len(files.readable(path)) for path in paths), progress.Count('images', len(paths))
  for batch in batches:
    if batch.paths and not rows:
      held.enter_context(signals.hold_by_parts('batch'))
    for reason in batch.unreadable.values():
      _log.info(f'skipped: {files.readable(reason)}')
    for path, indexes, probabilities in zip(
      batch.paths, batch.indexes.tolist(), batch.probabilities.tolist(), strict=True
    ):
      pairs = zip(indexes, probabilities, strict=True)
      best = [Guess(names[index], index, probability) for index, probability in pairs]
      shown = [f'{guess.name} {progress.format_value("accuracy", guess.probability)}' for guess in best]
      _log.info('  '.join([f'{files.readable(path):{width}}', *shown]))
      rows[path] = Row(files.readable(path), best, names[labels[path]] if path in labels else None)
    unreadable |= {files.readable(path): files.readable(reason) for path, reason in batch.unreadable.items()}
    line.update(len(rows) + len(unreadable))
    if signals.received() is not None:
      break
  line.close()
  return rows, unreadable


def _of_split(
  ranked: 'splits.Ranked', paths: Sequence[str] | None, names: Sequence[str], listed: bool
) -> tuple[dict[int, 'Row'], dict[str, str], dict[int, int]]:
  """Shows the first predictions for the images of a split.

  Args:
    ranked: the predictions.
    paths: the file of each image of the split, if it has one.
    names: class names in the order of the network.
    listed: whether a file will list them all.

  Returns:
    By index in the split the predictions, in their order, and the labels; between them, by name the reasons why other
    images have no prediction.
  """
  from dnt import inference
  from dnt.reporting import progress

  def name(place):
    return str(place) if paths is None else paths[place]

  rows = {}
  columns = (each.tolist() for each in (ranked.places, ranked.labels, ranked.losses))
  for place, label, loss, indexes, probabilities in zip(
    *columns, ranked.indexes.tolist(), ranked.probabilities.tolist(), strict=True
  ):
    pairs = zip(indexes, probabilities, strict=True)
    best = [Guess(names[index], index, probability) for index, probability in pairs]
    rows[place] = Row(name(place), best, names[label], loss)
  shown = list(rows.values())[:SHOWN]
  width = max((len(row.path) for row in shown), default=0)
  for path, best, label, loss in shown:
    guesses = [f'{guess.name} {progress.format_value("accuracy", guess.probability)}' for guess in best]
    _log.info('  '.join([f'{path:{width}}', f'loss {loss:.4f}', f'true: {label}', 'predicted:', *guesses]))
  if rest := len(rows) - len(shown):
    where = '' if listed else '; --output=<file>.csv lists them all'
    _log.info(f'the other {rest:,} images have smaller losses{where}')
  unreadable = {name(place): inference.why_not_predicted(name(place)) for place in ranked.lost.tolist()}
  for reason in unreadable.values():
    _log.info(f'skipped: {reason}')
  return rows, unreadable, dict(zip(ranked.places.tolist(), ranked.labels.tolist(), strict=True))


def _describe(
  count: int, split: str | None, network: 'network_lib.Network', measured: 'labels_lib.Measured | None'
) -> str:
  """Describes in the last line how many images were predicted, by which weights and how well."""
  from dnt.reporting import progress

  images = f'{count} image{"s" if count > 1 else ""}' + (f' of {split}' if split else '')
  text = ', '.join(filter(None, [images, network.describe_checkpoint()]))
  if measured:
    others = count - int(measured.confusion.sum())
    shown = {'accuracy': measured.accuracy, 'balanced_accuracy': measured.balanced_accuracy}
    text += f', {progress.format_values(shown).replace("  ", ", ").replace("_", " ")}'
    text += f' without the {others} that lie in no class folder' if others else ''
  return text


def read_names(path: str) -> tuple[str, ...]:
  """Returns the non-empty lines of a text file.

  Raises:
    errors.InputError: the file cannot be read.
  """
  try:
    lines = pathlib.Path(path).expanduser().read_text('utf-8-sig').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise errors.InputError(f'--class_names={path} cannot be read as text ({error})') from error
  return tuple(line.strip() for line in lines if line.strip())


class Guess(NamedTuple):
  """Holds a class that a network predicts for an image."""

  name: str
  index: int
  probability: float


class Row(NamedTuple):
  """Holds the predictions for an image, most likely first, and as far as they are known its true class and its loss."""

  path: str
  best: Sequence[Guess]
  label: str | None
  loss: float | None = None


def write(
  path: pathlib.Path,
  origin: str,
  step: int | None,
  split: str | None,
  rows: Sequence[Row],
  unreadable: dict[str, str],
  names: Sequence[str],
  measured: 'labels_lib.Measured | None',
) -> None:
  """Writes predictions as CSV or JSON, by the suffix.

  Args:
    path: path of the file.
    origin: the string that the network was loaded from.
    step: step of its checkpoint, if it has one.
    split: the split that the images are of; None: they were given as files.
    rows: the predictions.
    unreadable: reasons by path, for files without predictions.
    names: class names in the order of the network.
    measured: the predictions beside the labels, if there are labels; only JSON holds it.

  Raises:
    errors.InputError: the file cannot be written.
  """
  if path.suffix == '.csv':
    text = io.StringIO()
    table = csv.writer(text, lineterminator='\n')
    table.writerow(['image', 'rank', 'class', 'index', 'probability', 'true_class', 'loss'])
    for image, best, *known in rows:
      table.writerows([image, rank, *each, *known] for rank, each in enumerate(best, 1))
    content = text.getvalue()
  else:
    from dnt.reporting import confusion as confusion_lib

    predictions = [
      {
        'image': image,
        'classes': [{'class': guess.name, 'index': guess.index, 'probability': guess.probability} for guess in best],
        **({} if label is None else {'true_class': label}),
        **({} if loss is None else {'loss': loss}),
      }
      for image, best, label, loss in rows
    ]
    content: Any = {'weights': origin, 'step': step, **({} if split is None else {'split': split})}
    content |= {'predictions': predictions, 'unreadable': unreadable}
    if measured:
      content |= {'accuracy': measured.accuracy, 'balanced_accuracy': measured.balanced_accuracy}
      content['class_names'] = list(names)
      content |= {'confusion': confusion_lib.to_json(measured.confusion), 'per_class': measured.per_class}
  try:
    files.write(path, content) if isinstance(content, str) else files.write_json(path, content)
  except OSError as error:
    raise errors.InputError(f'--output={path} cannot be written ({error.strerror})') from error


PROGRAM = cli.Program(__doc__, define_flags, main)

if __name__ == '__main__':
  cli.run(PROGRAM)
