"""Writes the findings of rehearsals: tables as text, Markdown and HTML, and everything as JSON."""

import collections
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dnt import files
from dnt import workdir as workdir_lib
from dnt.rehearsal import findings, rehearsal
from dnt.reporting import html, progress, tables, versions

PACKAGES = ('jax', 'jaxlib', 'libtpu', 'jax-cuda13-plugin', 'jax-cuda12-plugin')
Table = list[list[str]]
_NOTE = (
  'The roofline knows the published figures of the chip alone: a step is slower where the chip does not reach them, '
  'and may be faster where a cache spares it memory traffic. Sizes, bytes and FLOPs are those of one chip.'
)


def write(workdir: pathlib.Path, config: str, found: Sequence[rehearsal.Rehearsal]) -> None:
  """Writes `rehearsal.json`, `rehearsal.md` and `rehearsal.html` into a folder.

  Args:
    workdir: an existing folder.
    config: name of the config.
    found: from `rehearsal.rehearse`, one for each target.
  """
  compiled_by = versions.find(PACKAGES)
  content = {'format': workdir_lib.FORMAT, 'config': config, 'versions': compiled_by, 'targets': to_json(found)}
  files.write_json(workdir / workdir_lib.REHEARSAL, content)
  title, used = f'Rehearsal of {config}', ', '.join(f'{name} {version}' for name, version in compiled_by.items())
  lines, parts = [f'# {title}', '', used, ''], [html.text(used)]
  for heading, rows in sections(found).items():
    lines += [f'## {heading}', '', tables.markdown(rows), '']
    parts += [html.heading(heading), html.table(rows[0], rows[1:])]
  lines += ['## What holds it back', '']
  parts.append(html.heading('What holds it back'))
  for each in found:
    said = findings.find(each)
    lines += [f'{each.target.text}:', '', *(f'- {sentence}' for sentence in said), '']
    parts += [html.facts({each.target.text: ' '.join(f'{sentence}.' for sentence in said)})]
  files.write(workdir / workdir_lib.REHEARSAL_TABLES, '\n'.join([*lines, _NOTE, '']))
  files.write(workdir / workdir_lib.REHEARSAL_PAGE, html.page(title, [*parts, html.text(_NOTE)]))


def text(found: Sequence[rehearsal.Rehearsal]) -> str:
  """Formats rehearsals for the terminal."""
  parts = [f'{heading}\n{tables.text(rows)}' for heading, rows in sections(found).items()]
  for each in found:
    said = '\n'.join(f'  {sentence}' for sentence in findings.find(each))
    parts.append(f'{each.target.text}\n{said}')
  return '\n\n'.join([*parts, _NOTE])


def sections(found: Sequence[rehearsal.Rehearsal]) -> dict[str, Table]:
  """Returns the tables by heading, without those that would be empty."""
  every = {
    'Targets': _targets(found),
    'Programs': _programs(found),
    'Collectives of a train step': _collectives(found),
    'Parameters that fsdp splits': _sharding(found),
  }
  return {heading: rows for heading, rows in every.items() if len(rows) > 1}


def _targets(found: Sequence[rehearsal.Rehearsal]) -> Table:
  rows = [
    [
      'target',
      'chips',
      'batch',
      'memory',
      'of',
      'fits',
      'step',
      'images/s',
      'MFU at most',
      'scaling',
      'run',
      'chip-hours',
    ]
  ]
  for each in found:
    peak, seconds, rate, run = each.peak, each.step_seconds, each.images_per_second, each.run_seconds
    scaling = efficiency(each, found)
    rows.append(
      [
        each.target.text,
        str(each.target.chips),
        str(each.config.train.batch_size) if each.made else '-',
        '-' if peak is None else _size(peak),
        _size(each.available),
        'yes' if each.fits else 'no',
        '-' if seconds is None else _seconds(seconds),
        '-' if rate is None else f'{rate:,.0f}',
        '-' if each.utilization is None else f'{each.utilization:.0%}',
        '-' if scaling is None else f'{scaling:.0%}',
        '-' if run is None else progress.format_duration(run),
        '-' if run is None else f'{run * each.target.chips / 3600:,.2f}',
      ]
    )
  return rows


def _programs(found: Sequence[rehearsal.Rehearsal]) -> Table:
  rows = [
    ['target', 'program', 'compiled in', 'arguments', 'temporaries', 'total', 'FLOPs', 'bytes', 'roofline', 'bound']
  ]
  for each in found:
    for step in each.steps:
      program, line = step.program, step.roofline
      rows.append(
        [
          each.target.text,
          program.label,
          f'{program.seconds:.0f} s',
          _size(program.arguments),
          _size(program.temporaries),
          _size(program.memory),
          _count(program.flops / each.target.chips),
          _size(step.costs.bytes),
          '-' if line.step is None else _seconds(line.step),
          line.bound or '-',
        ]
      )
  return rows


def _collectives(found: Sequence[rehearsal.Rehearsal]) -> Table:
  rows = [['target', 'kind', 'of', 'number', 'arrays', 'sent by a chip']]
  for each in found:
    for line in collectives(each.train) if each.train else ():
      cells = [str(line['number']), _size(line['bytes']), _size(line['sent'])]
      rows.append([each.target.text, line['kind'], line['purpose'], *cells])
  return rows


def _sharding(found: Sequence[rehearsal.Rehearsal]) -> Table:
  rows = [['parameter', 'target', 'shape', 'split axis']]
  for each in found:
    for line in each.made.sharding if each.made else ():
      shape = 'x'.join(map(str, line['shape']))
      rows.append([line['parameter'], each.target.text, shape, str(line['axis'])])
  return rows


def collectives(step: rehearsal.Step) -> list[dict[str, Any]]:
  """Sums the collectives of a step by kind and purpose.

  Returns:
    For each: `kind`, `purpose`, `number`, `bytes` of the arrays, and the bytes that a chip has `sent` in a ring. A
    collective that serves several purposes counts as one of that with most bytes, and its bytes as what they are for.
  """
  number, size = collections.Counter(), collections.Counter()
  sent: collections.defaultdict[tuple[str, str], float] = collections.defaultdict(float)
  for each in step.costs.collectives:
    number[each.kind, each.purpose] += each.times
    for purpose, count in each.bytes.items():
      size[each.kind, purpose] += each.times * count
      sent[each.kind, purpose] += each.times * each.sent * count / max(each.total, 1)
  return [
    {'kind': kind, 'purpose': purpose, 'number': number[kind, purpose], 'bytes': count, 'sent': sent[kind, purpose]}
    for (kind, purpose), count in sorted(size.items(), key=lambda item: -item[1])
  ]


def efficiency(each: rehearsal.Rehearsal, found: Sequence[rehearsal.Rehearsal]) -> float | None:
  """Returns the images per second and chip, as a fraction of those of the smallest target with the same chip."""
  same = [other for other in found if other.target.chip == each.target.chip and other.images_per_second]
  if not each.images_per_second or not same:
    return None
  least = min(same, key=lambda other: other.target.chips)
  assert least.images_per_second  # only such are in `same`
  return each.images_per_second / each.target.chips * least.target.chips / least.images_per_second


def to_json(found: Sequence[rehearsal.Rehearsal]) -> list[Mapping[str, Any]]:
  """Returns everything as JSON values: sizes in bytes, times in seconds."""
  return [_to_json(each, found) for each in found]


def _to_json(each: rehearsal.Rehearsal, found: Sequence[rehearsal.Rehearsal]) -> Mapping[str, Any]:
  run = each.run_seconds
  return {
    'target': each.target.text,
    'chip': each.target.chip._asdict() if each.target.chip else None,
    'chips': each.target.chips,
    'hosts': each.target.hosts,
    'compiles': bool(each.made and not each.problem),
    'problem': each.problem,
    'fits': each.fits,
    'memory': each.peak,
    'available': each.available,
    'batch_size': each.config.train.batch_size if each.made else None,
    'step_seconds': each.step_seconds,
    'images_per_second': each.images_per_second,
    'mfu_at_most': each.utilization,
    'scaling_efficiency': efficiency(each, found),
    'run_seconds': run,
    'chip_hours': None if run is None else run * each.target.chips / 3600,
    'programs': [
      {
        **{name: value for name, value in step.program._asdict().items() if name != 'text'},
        'memory': step.program.memory,
        'flops_of_a_chip': step.program.flops / each.target.chips,
        'bytes': step.costs.bytes,
        'roofline': {**step.roofline._asdict(), 'step': step.roofline.step, 'bound': step.roofline.bound},
        'collectives': collectives(step),
      }
      for step in each.steps
    ],
    'fit': each.fit._asdict() if each.fit else None,
    'sharding': each.made.sharding if each.made else [],
    'findings': findings.find(each),
  }


def _size(count: float) -> str:
  for exponent, unit in ((3, 'GiB'), (2, 'MiB'), (1, 'KiB')):
    if count >= 1024**exponent:
      return f'{count / 1024**exponent:.1f} {unit}'
  return f'{count:.0f} B'


def _count(number: float) -> str:
  for factor, letter in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'K')):
    if number >= factor:
      return f'{number / factor:.2f} {letter}'
  return f'{number:.0f}'


def _seconds(seconds: float) -> str:
  return f'{1e3 * seconds:.2f} ms' if seconds >= 1e-3 else f'{1e6 * seconds:.0f} us'
