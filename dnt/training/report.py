"""Writes the results of a run: the table of blocks, summary.json, curves, confusion matrices and report.html."""

import itertools
import os
import pathlib
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dnt import errors, files, trees
from dnt import workdir as workdir_lib
from dnt.config import keys, typed
from dnt.models import depth, freeze, layouts
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost
from dnt.reporting import confusion as confusion_lib
from dnt.reporting import html, metric_names, metrics, plots, progress, tables
from dnt.reporting import versions as versions_lib
from dnt.training import experiment, record, steps

WHOLE_TABLE = 70  # rows; longer tables show runs of equal blocks as one line
WHOLE_CLASSES = 40  # rows; with more classes, the table shows those with the least sensitivity
LEAST_FOUND = 20
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def block_table(table: Sequence[depth.Row], outside: int = 0) -> str:
  """Formats the entries in depth order with output shape, parameters and forward FLOPs per example, as text.

  FLOPs `outside` of all entries have a line of their own. Above 70 rows, a run of equal blocks of a stage becomes one
  line with their number.
  """
  runs: list[list[depth.Row]] = []
  for row in table:
    if len(table) > WHOLE_TABLE and runs and _alike(runs[-1][-1], row):
      runs[-1].append(row)
    else:
      runs.append([row])
  lines = [('entry', 'output', 'parameters', 'FLOPs')]
  for run in runs:
    first, times = run[0], f'{len(run)} x ' if len(run) > 1 else ''
    name = first.entry.name + (f' .. {run[-1].entry.name.rsplit("/", 1)[-1]}' if len(run) > 1 else '')
    shape = 'x'.join(map(str, first.shape)) if first.shape is not None else '-'
    lines.append((name, shape, f'{times}{first.parameters:,}', f'{times}{_quantity(first.flops)}'))
  if outside:
    lines.append(('outside entries', '-', '-', _quantity(outside)))
  parameters, flops = sum(row.parameters for row in table), sum(row.flops for row in table) + outside
  lines.append(('total', '', f'{parameters:,}', _quantity(flops)))
  return tables.text(lines)


def phase_line(phase: freeze.Phase, table: Sequence[depth.Row], params: Mapping[str, Any]) -> str:
  """Says in one line which entries and how many parameters train from the start of a phase on.

  Args:
    phase: the phase.
    table: the depth list.
    params: parameters or shapes, in the unrolled layout.
  """
  partition = phase.partition
  trained, total = (f'{trees.count(tree):,}' for tree in (partition.split(params)[0], params))
  if not partition.frozen:
    return f'from step {phase.start:,} on all entries train: {total} parameters'
  names, own = [], [row.entry.name for row in table if row.parameters]
  for stage, group in itertools.groupby(own, lambda name: name.partition('/')[0]):
    blocks = [*group]
    chosen = [name for name in blocks if name not in partition.frozen]
    names += [stage] if len(chosen) == len(blocks) else chosen
  others = any(freeze.is_below(path, partition.frozen) for path in partition.trainable)
  norms = ' and the norms of the others' if others else ''
  verb = 'train' if len(names) > 1 or norms else 'trains'
  return f'from step {phase.start:,} on {errors.list_names(names)}{norms} {verb}: {trained} of {total} parameters'


def write(
  run: experiment.Experiment,
  rec: record.Record,
  state: steps.TrainState,
  workdir: pathlib.Path,
  mesh: jax.sharding.Mesh,
  command: str,
  stopped_by: int | None = None,
) -> dict[str, Any]:
  """Writes `summary.json`, `curves.png`, `telemetry.png`, `confusion_<split>.png` (from the `.json`), `report.html`.

  Every process calls it; the first one writes.

  Args:
    run: the experiment.
    rec: its record, closed.
    state: the state at the end or the interruption of the run.
    workdir: the workdir of the run.
    mesh: the mesh of its devices.
    command: the command that continues the run.
    stopped_by: number of the signal that stopped the run before its last evaluation, if one did.

  Returns:
    The summary, with the contents of `summary.json`.
  """
  step = int(state.step)
  finished = rec.is_finished(step) and not stopped_by
  history = {name: getattr(rec, name) for name in ('last', 'best', 'warnings', 'seconds', 'images', 'peak_memory')}
  history |= {'best_checkpoint': rec.best_checkpoint, **rec.provenance}
  summary = summarize(run, history, step, state.params, finished, mesh, command)
  if stopped_by:
    summary['stopped_by'] = signal.Signals(stopped_by).name
  if multihost.is_lead():
    files.write_json(workdir / workdir_lib.SUMMARY, summary)  # first, because the disk may have room for it alone
    images = {}
    if records := metrics.read(workdir):
      ranking = metric_names.parse(run.config.checkpoint.best_metric).quantity
      images[workdir_lib.CURVES] = plots.png(plots.curves(records, training_extras(run.config), ranking))
    classes = {}
    if any(metric_names.from_metrics(record) for record in records):
      images[workdir_lib.TELEMETRY] = plots.png(plots.telemetry(records, [row.entry.name for row in run.table]))
    for path in workdir_lib.confusion_paths(workdir):
      if (result := workdir_lib.read_confusion(path)) is None:
        continue
      accuracy = progress.format_value('accuracy', _accuracy(result, records))
      title = f'{result["split"]}, step {result["step"]:,}: accuracy {accuracy}'
      images[f'{path.stem}.png'] = plots.png(plots.confusion(result['matrix'], result['class_names'], title))
      if 'per_class' in result:  # a run that an older version finished has none
        classes[f'{path.stem}.png'] = class_table(result['class_names'], result['per_class'])
    for name, content in images.items():
      files.write(workdir / name, content)
    network = block_table(run.table, run.trace.outside)
    files.write(
      workdir / workdir_lib.REPORT, page(workdir.name, summary, run.config.to_dict(), network, images, classes)
    )
  return summary


def summarize(
  run: experiment.Experiment,
  history: Mapping[str, Any],
  step: int,
  params: Any,
  finished: bool,
  mesh: jax.sharding.Mesh,
  command: str,
) -> dict[str, Any]:
  """Returns the contents of `summary.json`; every process calls it.

  Args:
    run: the experiment.
    history: `last`, `best`, `best_checkpoint`, `warnings`, `seconds`, `images`, `peak_memory`, `data` and `weights` of
      the record, or of the `meta` of a checkpoint, which lacks `best_checkpoint`.
    step: steps done.
    params: the parameters after them, in the model's layout.
    finished: whether the run has ended, and not only stopped.
    mesh: the mesh of its devices.
    command: the command that continues the run.
  """
  whole = mesh_lib.gather(layouts.to_unrolled(params, layouts.scanned_rows(params)))
  seconds = dict(history.get('seconds', {}))
  trained = seconds.get('train', 0.0)
  return {
    'step': step,
    'total_steps': run.config.train.steps,
    'finished': finished,
    'stopped_by': None,
    'last': history.get('last', {}),
    'best': history.get('best', {}),
    'best_checkpoint': history.get('best_checkpoint', {}),
    'warnings': history.get('warnings', {}),
    'provenance': {name: history[name] for name in ('data', 'weights') if history.get(name)},
    'parameters': trees.count(whole),
    'trainable_parameters': trees.count(run.phase_of_state(step).partition.split(params)[0]),
    'params_sha256': trees.sha256(whole),
    'seconds': {'total': sum(seconds.values()), 'compile': 0.0, 'train': 0.0, 'evaluate': 0.0} | seconds,
    'images_per_second': history['images'] / trained if trained else None,
    'peak_memory': history.get('peak_memory', {}),
    'versions': versions(),
    'devices': devices(mesh),
    'command': command,
  }


def training_extras(config: typed.Config) -> dict[str, list[str]]:
  """Returns by metric what it contains in training and not in an evaluation, so that the two differ without a reason.

  Args:
    config: the resolved config of the run.
  """
  data, loss = config.data, config.loss
  shared = {
    'augmentation': data.augment != 'none' or data.policy != 'none' or data.erasing,
    'mixup': data.mixup,
    'CutMix': data.cutmix,
    'stochastic depth': config.model.stochastic_depth,
  }
  of_loss = {'label smoothing': loss.label_smoothing, 'class weights': loss.class_weights}
  named = {'accuracy': shared, 'loss': shared | of_loss}
  return {metric: [name for name, used in parts.items() if used] for metric, parts in named.items()}


def page(
  title: str,
  summary: Mapping[str, Any],
  config: Mapping[str, Any],
  network: str,
  images: Mapping[str, bytes],
  classes: Mapping[str, Sequence[Sequence[str]]],
) -> str:
  """Returns an HTML page that needs no other file and no network access.

  Args:
    title: title of the run.
    summary: the contents of `summary.json`.
    config: nested dicts.
    network: the text of `block_table`.
    images: PNG files by name, in display order.
    classes: `class_table` by the name of the image above it.
  """
  stopped = f'stopped by {summary["stopped_by"]}' if summary['stopped_by'] else 'stopped'
  state = 'finished' if summary['finished'] else f'{stopped}, can go on'
  facts = {
    'state': f'{state}: step {summary["step"]:,} of {summary["total_steps"]:,}',
    **{name: progress.format_value(name, value) for name, value in summary['last'].items()},
    'best': _best(summary) or ('none yet' if '/' in config['checkpoint']['best_metric'] else 'no split ranks'),
    **({'the best checkpoint': evaluation_line(summary['best_checkpoint'])} if summary.get('best_checkpoint') else {}),
    **{
      f'warning: {kind}': f'step {result["step"]:,}: {result["text"]}' for kind, result in summary['warnings'].items()
    },
    **_provenance(summary['provenance']),
    'parameters': f'{summary["parameters"]:,}, of which {summary["trainable_parameters"]:,} train',
    'parameters SHA-256': summary['params_sha256'],
    'seconds': ', '.join(f'{name} {seconds:,.1f}' for name, seconds in summary['seconds'].items()),
    'images per second, whole run': f'{summary["images_per_second"]:,.0f}'
    if summary['images_per_second']
    else 'none yet',
    'devices': ', '.join(f'{name} {value}' for name, value in summary['devices'].items()),
    'versions': ', '.join(f'{name} {version}' for name, version in summary['versions'].items()),
    'command': summary['command'],
  }
  options = {key: 'not set' if value is None else str(value) for key, value in keys.flatten(config).items()}
  parts = [html.facts(facts)]
  for name, image in images.items():
    caption = name.removesuffix('.png').replace('_', ' ', 1)
    narrow = name not in (workdir_lib.CURVES, workdir_lib.TELEMETRY)
    parts += [html.heading(caption), html.image(caption, image, narrow)]
    if name in classes:
      header, *rows = classes[name]
      parts.append(html.table(header, rows))
  parts += [html.heading('network'), html.text(network), html.heading('config'), html.facts(options)]
  return html.page(title, parts)


def _provenance(provenance: Mapping[str, Any]) -> dict[str, str]:
  shown = {
    f'data: {split}': f'{each["images"]:,} images; content {each["content"][:16]}, '
    f'labels {(each["labels"] or "not known")[:16]}'
    for split, each in provenance.get('data', {}).items()
  }
  if weights := provenance.get('weights'):
    about = {name: value for name, value in weights.items() if name not in ('origin', 'sha256')}
    parts = [f'{name} {str(value)[:16]}' for name, value in (about | weights.get('sha256', {})).items()]
    shown['pretrained weights'] = ', '.join([weights['origin'], *parts])
  return shown


def class_table(class_names: Sequence[str], per_class: Mapping[str, Sequence[Any]]) -> list[tuple[str, ...]]:
  """Returns a header and one formatted row per class; above 40 classes, only the 20 with the least sensitivity.

  Args:
    class_names: in class order.
    per_class: from `scores.per_class`; the table has no AUROC if no class has one.
  """
  shown = range(len(class_names))
  if len(class_names) > WHOLE_CLASSES:
    tested = [place for place in shown if per_class['examples'][place]]
    shown = sorted(tested, key=lambda place: per_class['sensitivity'][place])[:LEAST_FOUND]
  title = 'class' if len(shown) == len(class_names) else f'lowest sensitivity of {len(class_names):,} classes'

  forms = {'examples': '{:,}', 'sensitivity': '{:.2%}', 'specificity': '{:.2%}', 'auroc': '{:.4f}'}
  if all(value is None for value in per_class['auroc']):  # predictions do not measure it
    del forms['auroc']

  def cell(name, place):
    value = per_class[name][place]
    return '-' if value is None else forms[name].format(value).replace('%', ' %')

  rows = [(class_names[place], *(cell(name, place) for name in forms)) for place in shown]
  return [(title, *(name.replace('auroc', 'AUROC') for name in forms)), *rows]


def last_line(summary: Mapping[str, Any], command: str) -> str:
  """Returns the result of a run in one line, or the command that continues it."""
  if not summary['finished']:
    return f'saved at step {summary["step"]} of {summary["total_steps"]}; run `{command}` again to go on'
  best = _best(summary)
  ranking = metric_names.parse(summary['best']['metric']).quantity if best else 'accuracy'

  def shown(values, quantities):
    evaluated = {name: metric_names.parse(name) for name in values}
    kept = [name for name, each in evaluated.items() if each.quantity in quantities and each.split != 'train']
    return progress.format_values({name: values[name] for name in kept})

  figures = {'accuracy', ranking}
  results = shown(summary['last'], {*figures, 'loss'})
  parts = [f'finished step {summary["step"]}', *([results] if results else []), *([f'best {best}'] if best else [])]
  if (step := summary['best_checkpoint'].get('step', summary['step'])) != summary['step']:
    # It is of another step if the checkpoint of the best evaluation was not saved.
    other = '' if step == summary['best'].get('step') else f'step {step}  '
    parts.append(f'best checkpoint: {other}{shown(summary["best_checkpoint"], figures)}')
  return '  '.join([*parts, progress.format_duration(summary['seconds']['total'])])


def evaluation_line(result: Mapping[str, Any]) -> str:
  """Formats `step` and the metrics of an evaluation as one line."""
  shown = {name: value for name, value in result.items() if name != 'step'}
  return '  '.join([f'step {result["step"]}', progress.format_values(shown)])


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that affect the results of a run."""
  return versions_lib.find(PACKAGES)


def devices(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """Describes the devices that a run uses; of CPUs also the number of cores, which may change the last bits of sums."""
  device = mesh.devices.flat[0]
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()  # not on macOS
  return {
    'platform': device.platform,
    'kind': device.device_kind,
    'count': mesh.size,
    'processes': jax.process_count(),
    'mesh': ' x '.join(f'{name} {size}' for name, size in mesh.shape.items()),
    **({'cores': cores} if device.platform == 'cpu' else {}),
  }


def device_line(mesh: jax.sharding.Mesh) -> str:
  """Says in one line on which devices a run trains."""
  found = devices(mesh)
  kind = 'CPU' if found['platform'] == 'cpu' else found['kind']
  several = f', {found["processes"]} processes' if found['processes'] > 1 else ''
  return f'trains on {found["count"]} {kind} device{"s" if found["count"] > 1 else ""}{several}'


def _accuracy(evaluated: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> float | None:
  """Returns the accuracy of an evaluation, None if it is not finite; the matrix alone lacks what has no prediction.

  Args:
    evaluated: the content of a `confusion_path`; its matrix counts if the record has no line of the evaluation.
    records: the lines of `metrics.jsonl`.
  """
  name = f'{evaluated["split"]}/accuracy'
  lines = [line for line in records if line['step'] == evaluated['step'] and not metric_names.is_training(line)]
  measured = [line[name] for line in lines if name in line]
  if measured:
    return measured[-1]
  true, predicted, count = confusion_lib.cells(evaluated['matrix'])
  return float(count[true == predicted].sum() / max(count.sum(), 1))


def _alike(a: depth.Row, b: depth.Row) -> bool:
  def cost(row):
    return row.entry.name.rpartition('/')[0], row.shape, row.parameters, row.flops

  return '/' in a.entry.name and cost(a) == cost(b)


def _quantity(number: int) -> str:
  for size, unit in ((1e12, ' T'), (1e9, ' G'), (1e6, ' M'), (1e3, ' k')):
    if number >= 0.9995 * size:
      return f'{number / size:.3g}{unit}'
  return str(number)


def _best(summary: Mapping[str, Any]) -> str:
  best = summary['best']
  return (
    f'{best["metric"]} {progress.format_value(best["metric"], best["value"])} at step {best["step"]}' if best else ''
  )
