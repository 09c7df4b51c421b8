"""Explains pictures, searches a split, and writes what is found: overlays, sheets, explain.html and explain.json."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dnt import config as schema
from dnt import errors, files, inference, pages, plots, terminal
from dnt.data import examples
from dnt.explanation import cam, exciting, faithfulness, pictures, sheet
from dnt.models import depth
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib

ON_SHEET = 48  # pictures, the first ones; each has an overlay of its own
AREAS = ('deletion', 'insertion', 'random_deletion', 'random_insertion')
# What the figures are, for explain.json and explain.html.
MEANING = {
  'maps': 'float32, ReLU as published, upsampled bilinearly; divided by their own peak for drawing alone',
  'deletion': 'area under the probability of the target as the pixels that the map puts first become the mean colour '
  f'of the data, in {faithfulness.STEPS} equal steps (Petsiuk et al. 2018); low is good',
  'insertion': 'the same as these pixels come back into the blurred picture (a Gaussian, its standard deviation '
  f'{faithfulness.BLUR:.1%} of the side); high is good',
  'random': 'both in the order of a random map on the same grid, upsampled as the map is',
}
EXCITEMENT = {
  'channels': 'ordered by the largest activation of the channel at any place of the picture',
  'classes': 'ordered by the probability of the class',
}


class Wanted(NamedTuple):
  """What to explain, and how.

  Attributes:
    entry: of the depth list, by name; None: the last one whose output has places.
    method: of `cam.METHODS`.
    target: class by name or index; None: the predicted one.
    images: what `inference.find` takes; None: no pictures.
    exciting: split to search; None: none.
    top: pictures of each channel and class.
  """

  entry: str | None
  method: str
  target: str | None
  images: str | None
  exciting: str | None
  top: int


def run(text: str, wanted: Wanted, output: pathlib.Path) -> str:
  """Explains and writes into a folder.

  Args:
    text: the network, what `inference.load` takes.
    wanted: what to explain.
    output: made if it is not there.

  Returns:
    What was found, in a line.

  Raises:
    errors.InputError: no such network, pictures, entry, class or split, no picture that can be read, or a folder that
      cannot be written.
  """
  paths = inference.find(wanted.images) if wanted.images else ()
  mesh = mesh_lib.make_mesh(schema.default().mesh)
  network = inference.load(text, mesh)
  entry = cam.choose(network.table, wanted.entry)
  target = None if wanted.target is None else pictures.class_index(network.class_names, wanted.target)
  source = exciting.load_split(network, wanted.exciting) if wanted.exciting else None
  files.make_workdir(output, '--output')
  explainer = pictures.Explainer(network, entry, wanted.method, min(pictures.BATCH, len(paths) or pictures.BATCH))
  about = {'network': network.origin, 'step': network.step, 'entry': entry.name, 'method': wanted.method}
  content, sheets, said = dict(about), {}, []
  if paths:
    found = _explain(network, explainer, paths, target, output, about)
    content |= found.content
    sheets['explained'] = found.sheet
    said.append(_means_line(found.content))
  if source:
    top = exciting.search(network, mesh, entry, source, wanted.top)
    content['exciting'] = {'meaning': EXCITEMENT, **exciting.record(network, source, top)}
    for name, tiles in _exciting_tiles(network, entry, explainer, source, top).items():
      title = f'{source.split}: what excites {"channels of " + entry.name if name == "channels" else name} most'
      sheets[f'exciting_{name}'] = plots.png(sheet.grid(title, tiles))
    said.append(f'searched {len(source):,} pictures of {source.split}')
  for name, png in sheets.items():
    files.write(output / f'{name}.png', png)
  files.write_json(output / 'explain.json', content)
  files.write(output / 'explain.html', _page(about, content, sheets))
  return '; '.join(said)


class _Found(NamedTuple):
  """What is said of pictures, and their contact sheet."""

  content: dict[str, Any]
  sheet: bytes


def _explain(
  network: inference.Network,
  explainer: pictures.Explainer,
  paths: Sequence[str],
  target: int | None,
  output: pathlib.Path,
  about: Mapping[str, Any],
) -> _Found:
  """Explains each picture, and writes its overlay."""
  line, unreadable = terminal.StatusLine(), {}

  def skip(path, reason):
    unreadable[path] = reason
    line.print(f'skipped: {reason}')

  records, tiles = [], []
  for each in explainer(paths, target, skip):
    prediction = int(each.probabilities.argmax())
    names = {'prediction': network.class_names[prediction], 'target': network.class_names[each.target]}
    overlay = f'overlay_{len(records) + 1:03d}_{pathlib.Path(each.path).stem}.png'
    heat = sheet.normalized(each.map)
    says = f'{sheet.short(names["prediction"])} {each.probabilities[prediction]:.1%}'
    method = f'{about["method"]} of {sheet.short(names["target"])}'
    files.write(
      output / overlay,
      plots.png(sheet.pair(pathlib.Path(each.path).name, (f'predicted: {says}', method), each.picture, heat)),
    )
    records.append(
      {
        'path': each.path,
        'overlay': overlay,
        'prediction': names['prediction'],
        'probability': float(each.probabilities[prediction]),
        'target': names['target'],
        'target_probability': float(each.probabilities[each.target]),
        'entry': about['entry'],
        'method': about['method'],
        'peak': float(each.map.max()),
        **dict(zip(AREAS, (*each.areas, *each.random_areas), strict=True)),
      }
    )
    if len(tiles) < ON_SHEET:
      other = '' if prediction == each.target else f'\nmap: {sheet.short(names["target"])}'
      tiles.append(sheet.Tile(f'{sheet.short(pathlib.Path(each.path).name)}\n{says}{other}', each.picture, heat))
    line.update(f'explained {len(records)} of {len(paths)} pictures')
  line.close()
  if not records:
    raise errors.InputError(f'none of the {len(paths)} pictures can be read')
  means = {name: float(np.mean([record[name] for record in records])) for name in AREAS}
  title = f'{about["method"]} at {about["entry"]}'
  if len(tiles) < len(records):
    title += f', the first {len(tiles)} of {len(records)} pictures'
  rows = [tiles[start : start + sheet.COLUMNS] for start in range(0, len(tiles), sheet.COLUMNS)]
  content = {'meaning': MEANING, 'means': means, 'pictures': records, 'unreadable': unreadable}
  return _Found(content, plots.png(sheet.grid(title, rows, beside=True)))


def _means_line(content: Mapping[str, Any]) -> str:
  means, count = content['means'], len(content['pictures'])
  figures = ', '.join(f'{name} {means[name]:.3f} (random map {means[f"random_{name}"]:.3f})' for name in AREAS[:2])
  return f'explained {count} picture{"s" if count > 1 else ""}: {figures}'


def _exciting_tiles(
  network: inference.Network,
  entry: depth.Entry,
  explainer: pictures.Explainer,
  source: examples.Examples,
  found: Mapping[str, exciting.Top],
) -> dict[str, list[list[sheet.Tile]]]:
  """Rows of pictures for the channels and classes that are drawn, each with the map of what excites it."""
  size = network.image_shape[:2]

  def activation(variables, batch, channels):
    _, output = cam.outputs(network.model, entry, variables, network.preprocess(batch))
    chosen = jnp.take_along_axis(output.astype(jnp.float32), channels[:, None, None, None], 3)[..., 0]
    return cam.upsample(jax.nn.relu(chosen), size)

  program = compile_lib.jit(activation)
  rows = {}
  for name, top in found.items():
    chosen = exciting.drawn(top)
    places = top.pictures[chosen]
    shown = np.stack([exciting.picture(network, source, int(place)) for place in places.flat])
    wanted = np.repeat(chosen, places.shape[1]).astype(np.int32)
    if name == 'channels':
      maps = pictures.in_batches(lambda *batch: program(network.variables, *batch), pictures.BATCH, shown, wanted)
      titles = [f'channel {index}: {score:.3g}' for index in chosen for score in top.scores[index]]
    else:
      maps, *_ = explainer.maps(shown, wanted)
      names = [sheet.short(network.class_names[index]) for index in chosen]
      titles = [
        f'{name} {np.exp(score):.1%}' for name, index in zip(names, chosen, strict=True) for score in top.scores[index]
      ]
    labels = ['' if source.labels is None else network.class_names[source.labels[place]] for place in places.flat]
    tiles = [
      sheet.Tile(f'{title}\n{sheet.short(label)}', picture, sheet.normalized(heat))
      for title, label, picture, heat in zip(titles, labels, shown, maps, strict=True)
    ]
    rows[name] = [tiles[start : start + places.shape[1]] for start in range(0, len(tiles), places.shape[1])]
  return rows


def _page(about: Mapping[str, Any], content: Mapping[str, Any], sheets: Mapping[str, bytes]) -> str:
  """The whole page: what was asked, what the figures mean, the sheets and a table."""
  facts = {name: str(value) for name, value in about.items() if value is not None}
  parts = [pages.facts(facts)]
  if 'pictures' in content:
    header = ['picture', 'predicted', 'map of', *(name.replace('_', ' ') for name in AREAS)]
    rows = [
      [
        pathlib.Path(record['path']).name,
        f'{record["prediction"]} {record["probability"]:.1%}',
        f'{record["target"]} {record["target_probability"]:.1%}',
        *(f'{record[name]:.3f}' for name in AREAS),
      ]
      for record in content['pictures']
    ]
    rows.append(['mean', '', '', *(f'{content["means"][name]:.3f}' for name in AREAS)])
    parts += [pages.heading('pictures'), pages.picture('pictures and maps', sheets['explained'])]
    parts += [pages.heading('faithfulness'), pages.facts(MEANING), pages.table(header, rows)]
    if content['unreadable']:
      parts += [pages.heading('skipped'), pages.facts(content['unreadable'])]
  if 'exciting' in content:
    found = content['exciting']
    parts += [pages.heading(f'what excites most, of the {found["examples"]:,} pictures of {found["split"]}')]
    parts += [pages.facts(EXCITEMENT)]
    for name in EXCITEMENT:
      count = len(found[name])
      shown = f'{name}: {min(count, exciting.DRAWN)} of {count:,}, those with the highest peak'
      parts += [pages.heading(shown), pages.picture(shown, sheets[f'exciting_{name}'])]
  return pages.page(f'{about["method"]} at {about["entry"]}', parts)
