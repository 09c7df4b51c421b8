"""Explains images, searches a split, and writes the results: overlays, sheets, explain.html and explain.json."""

import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dnt import checkpoints, errors, files, inference
from dnt import config as schema
from dnt import workdir as workdir_lib
from dnt.explanation import cam, faithfulness, maps, sheet, top_activating
from dnt.parallel import mesh as mesh_lib
from dnt.reporting import html, plots, progress

_log = logging.getLogger(__name__)
NAME_BYTES = 200  # most of an image's name that the name of its overlay has; a file system takes 255 bytes in all
ON_SHEET = 48  # the sheet shows only this many images, the first ones; every image has an overlay file
SHOWN = ('deletion', 'insertion')
AREAS = (*SHOWN, 'random_deletion', 'random_insertion')
# Explanations of the metrics in explain.json and explain.html.
MEANING = {
  'maps': 'float32, ReLU as published, upsampled bilinearly; divided by their own peak only for drawing; a map with '
  'peak 0 is zero everywhere and orders no pixels: its areas are those of the random map',
  'deletion': 'area under the curve of the probability of the target while the pixels, highest map value first, '
  f'become the mean color of the data, in {faithfulness.STEPS} equal steps (Petsiuk et al. 2018); lower is better',
  'insertion': 'the same while these pixels replace those of a blurred image (a Gaussian with a standard deviation of '
  f'{faithfulness.BLUR:.1%} of the side, at least {faithfulness.LEAST_BLUR:g} pixels); higher is better',
  'random': 'both in the order of a random map on the same grid, upsampled like the map',
}
TOP_ACTIVATING = {
  'channels': 'ordered by the largest activation of the channel at any position of the image',
  'classes': 'ordered by the probability of the class',
}


class Wanted(NamedTuple):
  """The options of an explanation.

  Attributes:
    entry: name of an entry of the depth list; None: the last one with a spatial output.
    method: a key of `cam.METHODS`.
    target: class by name or index; None: the predicted class.
    images: argument for `inference.find`; None: no images.
    top_activating: split to search; None: no search.
    top: number of images for each channel and class.
  """

  entry: str | None
  method: str
  target: str | None
  images: str | None
  top_activating: str | None
  top: int


def run(requested: str, wanted: Wanted, output: pathlib.Path, checkpoint: str = checkpoints.NEWEST) -> str:
  """Explains and writes into a folder.

  Args:
    requested: the network, as an argument for `inference.load`.
    wanted: the options.
    output: the folder; this function creates it if it is missing.
    checkpoint: checkpoint of a run, as for `inference.load`.

  Returns:
    A summary of the results in one line.

  Raises:
    errors.InputError: the network, images, entry, class or split do not exist, no image can be explained, or the folder
      is not writable.
  """
  paths = inference.find(wanted.images) if wanted.images else ()
  mesh = mesh_lib.make_mesh(schema.default().mesh)
  network = inference.load(requested, mesh, checkpoint)
  entry = cam.choose(network.table, wanted.entry)
  target = None if wanted.target is None else maps.class_index(network.class_names, wanted.target)
  source = inference.load_split(network, wanted.top_activating) if wanted.top_activating else None
  files.make_workdir(output, '--output')
  together = min(maps.BATCH, len(paths)) if paths else maps.BATCH
  explainer = maps.Explainer(network, mesh, entry, wanted.method, together)
  about = {'network': network.origin, 'step': network.step, 'entry': entry.name, 'method': wanted.method}
  content: dict[str, Any] = {**about}
  sheets, lines = {}, []
  if paths:
    result, sheets['explained'] = _explain(network, explainer, paths, target, output, about)
    content |= result
    texts = [
      f'{name} {result["means"][name]:.3f} (random map {result["means"][f"random_{name}"]:.3f})' for name in SHOWN
    ]
    count = len(result['images'])
    lines.append(f'{count} image{"s" if count > 1 else ""}: {", ".join(texts)}')
  if source:
    top = top_activating.search(network, mesh, entry, source, wanted.top)
    content['top_activating'] = {'meaning': TOP_ACTIVATING, **top_activating.to_json(network, source, top)}
    rows = top_activating.make_tiles(network, mesh, entry, explainer, source, top)
    titles = {'channels': f'channels of {entry.name}', 'classes': f'classes, {wanted.method}'}
    for name, title in titles.items():
      title = f'{source.split}, top-activating images: {title}'
      sheets[f'top_activating_{name}'] = plots.png(sheet.grid(title, rows[name]))
    lines.append(f'searched the {len(source):,} images of {source.split}')
  for name, png in sheets.items():
    files.write(output / f'{name}.png', png)
  files.write_json(output / workdir_lib.EXPLANATION, content)
  files.write(output / workdir_lib.EXPLANATION_PAGE, _page(about, content, sheets))
  return '; '.join(filter(None, [*lines, network.describe_checkpoint()]))


def _explain(
  network: inference.Network,
  explainer: maps.Explainer,
  paths: Sequence[str],
  target: int | None,
  output: pathlib.Path,
  about: Mapping[str, Any],
) -> tuple[dict[str, Any], bytes]:
  """Explains each image and writes its overlay; returns the content for explain.json and the contact sheet."""
  inference.say_reading(network, paths)
  line, unreadable, records, tiles = progress.Count('explained', len(paths)), {}, [], []

  def skip(path, reason):
    unreadable[files.readable(path)] = files.readable(reason)
    _log.info(f'skipped: {files.readable(reason)}')

  for each in explainer(paths, target, skip):
    record = _record(network, each, about)
    path = pathlib.Path(files.readable(each.path))
    title = '/'.join(path.parts[-2:])  # the folder name is often the class
    record['overlay'] = overlay_name(len(records) + 1, path.stem)
    records.append(record)
    predicted, mapped = (
      f'{sheet.short(record[name])} {progress.format_value("accuracy", record[key])}'
      for name, key in (('prediction', 'probability'), ('target', 'target_probability'))
    )
    shown = sheet.Tile(f'predicted: {predicted}', each.image, each.map)
    files.write(output / record['overlay'], plots.png(sheet.pair(title, shown, f'map of: {mapped}')))
    if len(tiles) < ON_SHEET:
      lines = [sheet.short(title, 2 * sheet.NAME), predicted]
      lines += [f'map of: {mapped}'] * (mapped != predicted) + ['zero everywhere'] * (record['peak'] == 0)
      tiles.append(shown._replace(title='\n'.join(lines)))
    line.update(len(records) + len(unreadable))
  line.close()
  if not records:
    first = next(iter(unreadable.values()))
    raise errors.InputError(f'none of the {len(paths)} images can be explained: {first}')
  zero = sum(record['peak'] == 0 for record in records)
  if zero:
    found = f'the map of {zero} of {len(records)} images is zero everywhere: no position raises the score of its class'
    _log.warning(f'{found}; try another --method or --entry')
  means = {name: float(np.mean([record[name] for record in records])) for name in AREAS}
  content = {'meaning': MEANING, 'means': means, 'images': records, 'unreadable': unreadable}
  first = f', the first {len(tiles)} of {len(records)} images' if len(tiles) < len(records) else ''
  rows = [tiles[start : start + sheet.COLUMNS] for start in range(0, len(tiles), sheet.COLUMNS)]
  return content, plots.png(sheet.grid(f'{about["method"]} at {about["entry"]}{first}', rows, beside=True))


def overlay_name(number: int, name: str) -> str:
  """Returns the name of the overlay file of an image, with as much of the image's own name as fits."""
  return f'overlay_{number:03d}_{name.encode()[:NAME_BYTES].decode(errors="ignore")}.png'


def _record(network: inference.Network, result: maps.Explained, about: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the record of an image for explain.json."""
  prediction = int(result.probabilities.argmax())
  return {
    'path': files.readable(result.path),
    'prediction': network.class_names[prediction],
    'probability': float(result.probabilities[prediction]),
    'target': network.class_names[result.target],
    'target_probability': float(result.probabilities[result.target]),
    'entry': about['entry'],
    'method': about['method'],
    'peak': float(result.map.max()),
    **dict(zip(AREAS, (*result.areas, *result.random_areas), strict=True)),
  }


def _page(about: Mapping[str, Any], content: Mapping[str, Any], sheets: Mapping[str, bytes]) -> str:
  """Builds the whole page: the options, the sheets, the explanations of the metrics, and the metrics."""
  parts = [html.facts({name: str(value) for name, value in about.items() if value is not None})]
  if 'images' in content:
    parts += [html.heading('images'), html.image('images and their maps', sheets['explained'])]
    parts += [html.heading('faithfulness'), html.facts(MEANING), _table(content)]
    if content['unreadable']:
      parts += [html.heading('skipped'), html.facts(content['unreadable'])]
  if 'top_activating' in content:
    result = content['top_activating']
    parts += [html.heading(f'top-activating images among the {result["examples"]:,} of {result["split"]}')]
    parts += [html.facts(TOP_ACTIVATING)]
    for name in TOP_ACTIVATING:
      shown = f'{name}: {min(len(result[name]), top_activating.DRAWN)} of {len(result[name]):,}, with the highest peaks'
      parts += [html.heading(shown), html.image(shown, sheets[f'top_activating_{name}'])]
  return html.page(f'{about["method"]} at {about["entry"]}', parts)


def _table(content: Mapping[str, Any]) -> str:
  """Builds the table with the areas of each image, and their means."""
  rows = [
    [
      record['path'],
      f'{record["prediction"]} {progress.format_value("accuracy", record["probability"])}',
      f'{record["target"]} {progress.format_value("accuracy", record["target_probability"])}',
      *(f'{record[name]:.3f}' for name in AREAS),
    ]
    for record in content['images']
  ]
  rows.append(['mean', '', '', *(f'{content["means"][name]:.3f}' for name in AREAS)])
  return html.table(['image', 'predicted', 'map of', *(name.replace('_', ' ') for name in AREAS)], rows)
