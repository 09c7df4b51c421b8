"""Says in words what holds a run back on a target, and what to change."""

from collections.abc import Iterator

from dnt.rehearsal import fit, hlo, rehearsal, roofline
from dnt.training import precompile

FEW = 8  # examples of a chip below which its arithmetic units are hardly filled


def find(found: rehearsal.Rehearsal) -> list[str]:
  """Returns sentences, the most important first."""
  return list(_find(found))


def _find(found: rehearsal.Rehearsal) -> Iterator[str]:
  if found.made is None or found.problem or not found.fits:
    yield _unfit(found)
  if found.fit:
    yield _largest(found.fit)
  if found.train is None:
    return
  config, line, chips = found.config, found.train.roofline, found.target.chips
  yield from _collectives(found)
  if line.step:
    yield _bound(found, line)
  each = config.train.batch_size / chips
  if each / config.train.accumulate < FEW:
    micro = ' in each micro-batch' if config.train.accumulate > 1 else ''
    yield (
      f'each chip has {each / config.train.accumulate:g} examples{micro}, too few to fill its arithmetic units: a '
      'larger config.train.batch_size, or fewer chips'
    )
  if found.target.chip and found.target.chip.is_tpu:
    yield from _lanes(found)
  if found.target.chip and not found.target.chip.is_tpu:
    yield (
      'the algorithm of each convolution, and the memory it works in, are chosen on the GPU itself: leave a tenth '
      'of the memory free'
    )
  yield from _input(found)


def _largest(found: fit.Fit) -> str:
  if not found.batch:
    largest = 'there is no batch whose train step fits'
  else:
    largest = f'the largest batch whose train step fits is about config.train.batch_size={found.batch}'
  if found.changes is None:
    return f'{largest}; neither remat nor fsdp makes that of the config fit'
  ways = ' '.join(f'--config.{key}={value}' for key, value in found.changes.items())
  return f'{largest}; that of the config fits with {ways}' if ways else largest


def _unfit(found: rehearsal.Rehearsal) -> str:
  if found.made is None:
    return found.problem
  if found.problem:
    what, large = found.problem, ['evaluation' if repr(precompile.EVALUATION) in found.problem else 'training']
  else:
    large = [name for name, size in found.peaks.items() if size > found.available]
    need = f'it needs {found.peak or 0:,} bytes of the {found.available:,.0f} of a chip'
    what = f'{need}, for {" and ".join(large)}'
  ways = ['a smaller config.eval.batch_size'] if 'evaluation' in large else []
  if 'training' in large:
    ways += ['a smaller config.train.batch_size', 'a larger config.train.accumulate']
    if not found.config.model.remat:
      ways.append('config.model.remat=True')
  if found.config.mesh.fsdp == 1 and found.target.chips > 1:
    ways.append(f'config.mesh.fsdp={found.target.chips}')
  more = '; --fit finds the largest batch whose train step fits' if 'training' in large and not found.fit else ''
  return f'{what}. What makes it smaller: {", ".join(ways)}{more}'


def _collectives(found: rehearsal.Rehearsal) -> Iterator[str]:
  assert found.train is not None
  every = found.train.costs.collectives
  kinds = {each.kind for each in every if each.purpose == hlo.STATISTICS}
  for kind in sorted(kinds):
    of_kind = [each for each in every if each.kind == kind]
    sums = [each for each in of_kind if each.purpose == hlo.STATISTICS]
    count = sum(each.times for each in sums)
    wait = ''
    line = found.train.roofline
    if line.step and line.waiting:
      wait = f', for which the chips wait {1e6 * line.waiting:,.0f} us of a step of {1e6 * line.step:,.0f} us'
    yield (
      f'{count} of {sum(each.times for each in of_kind)} {kind}s are BatchNorm statistics{wait}: '
      'config.model.norm_sync=device takes them on each chip by itself, and config.model.norm=group_norm has none'
    )


def _bound(found: rehearsal.Rehearsal, line: roofline.Roofline) -> str:
  assert line.step is not None and found.target.chip is not None
  parts = {name: value for name, value in line._asdict().items() if value}
  listed = ', '.join(f'{name} {1e6 * value:,.0f} us' for name, value in parts.items())
  bfloat16 = found.config.model.dtype == 'bfloat16'
  advice = {
    'compute': 'its products at the peak rate of the chip; nothing else limits it',
    'memory': 'the bytes that it reads and writes' + ('' if bfloat16 else ': config.model.dtype=bfloat16 halves most'),
    'links': 'the bytes that the chips exchange: a larger batch on each chip, or config.train.accumulate',
    'waiting': 'the waits for BatchNorm statistics: a larger batch on each chip, or another norm',
  }
  return f'a step is bound by {advice[line.bound]} ({listed})'


def _lanes(found: rehearsal.Rehearsal) -> Iterator[str]:
  """Names narrow networks, which leave most of a TPU's matrix unit empty."""
  assert found.made is not None and found.target.chip is not None and found.target.chip.lanes
  lanes = found.target.chip.lanes
  table = [row for row in found.made.run.table if row.shape]
  total = sum(row.flops for row in table)
  filled = sum(row.flops * min((row.shape or (lanes,))[-1], lanes) / lanes for row in table)
  if total and filled / total < 0.8:
    yield (
      f'most channels are fewer than the {lanes} that a TPU multiplies at once: they fill {filled / total:.0%} of its '
      'matrix unit, so that compute takes at least as much longer'
    )


def _input(found: rehearsal.Rehearsal) -> Iterator[str]:
  """Says how many images each host must read and decode."""
  rate = found.images_per_second
  if found.made is None or rate is None or not found.made.streams:
    return
  hosts = found.target.hosts
  yield (
    f'at this rate each of the {hosts} hosts reads and decodes {rate / hosts:,.0f} images/s (config.data.workers)'
    if hosts > 1
    else f'at this rate the host reads and decodes {rate:,.0f} images/s (config.data.workers)'
  )
