"""A comparison that has ended."""

import json

import pytest

from dnt import workdir as workdir_lib
from dnt.comparison import output, plan, reading
from tests.comparison.recorded import ACCURACIES, leave, lines, make_config


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """The results of three finished runs and a failed one."""
  config, tmp_path = make_config(), tmp_path_factory.mktemp('compare_me')
  runs = plan.make(config, tmp_path)
  for run in runs:
    if (run.variant, run.seed) in ACCURACIES:
      leave(run, *ACCURACIES[run.variant, run.seed])
    else:
      run.workdir.mkdir(parents=True)
      (run.workdir / 'metrics.jsonl').write_text(json.dumps(next(lines(0, 0))) + '\n')
      (run.workdir / workdir_lib.FAILURE).write_text('{"error": "the loss is | not finite at step 12; try <this>"}')
  outcomes = [reading.read(run) for run in runs]
  output.write(outcomes, output.About(config, 'compare_me', 'short', 'python -m dnt.compare'), tmp_path)
  return tmp_path, outcomes
