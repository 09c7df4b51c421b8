"""Trains the variants of a config, each with every seed, and compares them in one table and one plot.

  python -m dnt.compare --config=configs/compare_init.py
  python -m dnt.compare --config=configs/compare_degradation.py --form=short --only=plain20,plain56 --workdir=runs/mine

The program writes the results again after each run. At its end it says, for each data that variants were trained on,
which has the best mean of the first of config.columns, by how much, and how far the seeds spread. The same command
continues where the last one stopped, and does not repeat finished runs. Ctrl-C, SIGTERM or a closed terminal saves the
current run and stops; a second Ctrl-C stops at once. If a run fails, the program reports it and continues with the
others; the exit code is then 1.
"""

import pathlib
import shlex
import sys

from absl import flags

from dnt import cli, errors, files


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this program."""
  cli.define_path('workdir', 'Folder to write all runs to; default: runs/<name of the config>[_<form>].', values)
  flags.DEFINE_list(
    'only',
    [],
    "Variants to run, by name or pattern ('deep_*'); default: all. The table shows all runs in the workdir.",
    flag_values=values,
  )
  flags.DEFINE_string('form', '', 'Form of the config, such as short; empty: the full form.', flag_values=values)


def find_workdir(values: flags.FlagValues) -> pathlib.Path:
  """Returns the folder that the flags name, by default one with the name of the config and its form."""
  return pathlib.Path(values.workdir or pathlib.Path('runs') / _name(values))


def _name(values: flags.FlagValues) -> str:
  return cli.config_name(values) + (f'_{values.form}' if values.form else '')


def main(values: flags.FlagValues) -> None:
  """Reads the flags, runs the unfinished runs and writes the results; the last line printed is their folder."""
  config = cli.config(values)
  name, workdir, ranking = _name(values), find_workdir(values), config.columns[0]
  files.check_path(workdir)
  given = cli.overrides(values)
  command = shlex.join(['python', '-m', 'dnt.compare', *sys.argv[1:]])

  from dnt.comparison import output, plan, reading, results, runner
  from dnt.parallel import signals

  base_keys = [key.removeprefix('base.') for key in given]
  runs = plan.make(plan.add_seeds(config, workdir), workdir, values.form, base_keys)
  chosen = plan.choose([run for run in runs if run.seed in config.seeds], values.only)
  plan.check_given(config, chosen, base_keys)

  def write():
    outcomes = [reading.read(run, ranking) for run in runs if run in chosen or plan.is_comparable(run)]
    output.write(outcomes, output.About(config, name, values.form, command), workdir)
    return outcomes

  with runner.own(workdir, runs):
    ended = runner.run(chosen, write, ranking)
    outcomes = write()
  if ended:
    best = results.find_best(results.summarize(outcomes), ranking)
    for title, text in output.describe_best(best).items():
      print(f'{title}: {text}')
  failed = [outcome for outcome in outcomes if outcome.state == 'failed' and outcome.run in chosen]
  if not ended:
    print(f'stopped; run `{command}` again to go on  {workdir}')
    if number := signals.received():  # or the output was closed
      raise signals.Stopped(number)
  elif failed:
    listed = ', '.join(outcome.run.name for outcome in failed)
    raise errors.RunError(
      f'{len(failed)} of {len(chosen)} runs failed: {listed}; see {workdir}/results.md for the reasons'
    )
  else:
    print(f'finished {len(chosen)} runs  {workdir}')


PROGRAM = cli.Program(__doc__, define_flags, main, 'compare_init.py', ('compare',), computes=False)

if __name__ == '__main__':
  cli.run(PROGRAM)
