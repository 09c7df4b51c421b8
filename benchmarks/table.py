"""A Markdown table of finished runs, made from their metrics.jsonl and summary.json.

The figures are those of `test`, or of the first split that the run evaluated, which is then named.

python -m benchmarks.table runs/a runs/b ...
"""

import json
import pathlib
import sys

from absl import app

from dnt.reporting import metric_names, metrics, progress, tables


def row(workdir: pathlib.Path) -> list[str]:
  """Name, network, data, steps, epochs, test figures and time of one run."""
  config = json.loads((workdir / 'config.json').read_text())
  summary = json.loads((workdir / 'summary.json').read_text())
  last = metrics.last_evaluation(metrics.read(workdir))
  split = 'test' if 'test/accuracy' in last else config['eval']['splits'][0]
  accuracy, loss = (metric_names.deciding(last, split, quantity) for quantity in ('accuracy', 'loss'))
  model, source, seconds = config['model'], config['data']['source'], summary['seconds']
  note = '' if split == 'test' else f' ({split})'
  return [
    workdir.name,
    f'{model["name"]}-{model["depth"]}',
    source if source.startswith('tfds:') else source.partition(':')[0],  # a folder's place says nothing
    f'{last["epoch"]:.1f} ({last["step"]})',
    f'{100 * last[accuracy]:.2f} %{note}',
    f'{last[loss]:.3f}{note}',
    progress.format_duration(seconds['total']),
    f'{summary["images_per_second"]:,.0f}',
  ]


def main(arguments):
  rows = [['run', 'network', 'data', 'epochs (steps)', 'accuracy', 'loss', 'total time', 'images/s']]
  rows += [row(pathlib.Path(workdir)) for workdir in arguments[1:]]
  print(tables.markdown(rows))


if __name__ == '__main__':
  if len(sys.argv) < 2:
    sys.exit('give the workdirs of finished runs')
  app.run(main)
