"""What all launchers share."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import absl.flags
import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'
CONFIG = 'digits_resnet20'
POD = ('--name=pod', '--zone=us-central2-b')
JOBSET = ('--name=a', '--image=i', '--claim=c', '--accelerator=tpu-v5-lite-podslice', '--topology=4x4', '--hosts=4')
# Each launcher with what it needs to run a training, but for the program's flags.
RUNS = {
  'local.sh': ('-n', '2'),
  'slurm.sh': ('--nodes=2',),
  'tpu_pod.sh': ('run', *POD),
  'gke_jobset.sh': JOBSET,
  'skypilot.sh': ('--name=a', '--accelerators=H100:8', '--bucket=s3://data'),
}
FLAGS = ('--dry-run', '--', '--workdir=gs://bucket/a')
ELSEWHERE = ('tpu_pod.sh', 'skypilot.sh', 'gke_jobset.sh')  # they run a copy of the checkout, on other machines


def test_every_launcher_is_here():
  assert {path.name for path in LAUNCH.glob('*.sh')} == {*RUNS, 'lib.sh', 'slices.sh'}


def shellcheck(*arguments, **options):
  # pip installs it beside the interpreter, which need not be in PATH.
  place = f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
  program = shutil.which('shellcheck', path=place)
  assert program, 'shellcheck is not installed; see requirements-dev.txt'
  result = subprocess.run([program, *arguments], capture_output=True, text=True, **options)
  assert result.returncode == 0, result.stdout


def test_shellcheck_finds_nothing():
  shellcheck(*LAUNCH.glob('*.sh'))


def test_shellcheck_finds_nothing_in_the_script_for_slurm(launch):
  printed = launch('slurm.sh', '--nodes=2', '--dry-run', '--', "--workdir=/shared/it's a run").stdout
  shellcheck('-', input=printed.partition('\n')[2])


@pytest.mark.parametrize('script', RUNS)
def test_help_names_every_option(launch, script):
  result = launch(script, '--help')
  assert result.returncode == 0
  text = (LAUNCH / script).read_text()
  options = set(re.findall(r'^    (--[a-z-]+)(?:=\*)?\)', text, re.MULTILINE))
  assert '--dry-run' in options
  for option in options:
    assert option in result.stdout


@pytest.mark.parametrize('script', RUNS)
def test_dry_run_prints_the_program_with_its_flags_as_they_are(launch, script):
  flags = [
    f'--config={CONFIG}',
    '--workdir=gs://bucket/a b',
    "--config.data.source=folder:it's",
    '--config.optim.nesterov',
  ]
  result = launch(script, *RUNS[script], '--dry-run', '--', *flags, path='/usr/bin:/bin')
  assert result.returncode == 0, result.stderr
  if script in ('local.sh', 'slurm.sh'):
    words = shlex.split(result.stdout.splitlines()[-1])
    start = words.index('dnt.main') + 1
    assert words[start : start + 5] == [*flags, '--distributed']
  else:
    assert all(word in result.stdout for word in ('-m', 'dnt.main', '--config.optim.nesterov', '--distributed'))


@pytest.mark.parametrize('config', ['configs/nothing.py', 'bin'])
@pytest.mark.parametrize('script', RUNS)
def test_a_missing_config_is_refused_with_what_there_is(launch, script, config):
  result = launch(script, *RUNS[script], '--dry-run', '--', f'--config={config}', '--workdir=gs://bucket/a')
  assert (result.returncode, result.stdout) == (2, '')
  assert re.match(f"{script}: .*'{config}'.* configs/cifar_", result.stderr)
  assert 'configs/digits_resnet20.py' in result.stderr


@pytest.mark.parametrize('name', ['digits_resnet20', 'digits_resnet20.py'])
@pytest.mark.parametrize('folder', ['', 'configs/', './configs/'])
@pytest.mark.parametrize('script', ['local.sh', 'tpu_pod.sh'])
def test_a_config_of_dnt_is_found_from_any_folder(launch, script, folder, name):
  result = launch(script, *RUNS[script], '--dry-run', '--', f'--config={folder}{name}', '--workdir=gs://bucket/a')
  assert result.returncode == 0, result.stderr
  other = launch(script, *RUNS[script], '--dry-run', '--', f'--config=mine/{folder}{name}', '--workdir=gs://bucket/a')
  assert other.returncode == 2


@pytest.mark.parametrize('script', RUNS)
def test_the_workdir_of_a_run_is_a_config(launch, tmp_path, script):
  (tmp_path / 'runs' / 'mine').mkdir(parents=True)
  (tmp_path / 'runs' / 'mine' / 'config.json').write_text('{}')
  here = [] if script in ELSEWHERE else ['runs/mine', 'runs/mine/config.json', '~/runs/mine']
  for config in (*here, 'gs://bucket/mine', '/mnt/dnt/mine'):
    flags = (f'--config={config}', '--workdir=gs://bucket/again')
    result = launch(script, *RUNS[script], '--dry-run', '--', *flags, HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert f'--config={config}' in result.stdout.replace("'", '')


@pytest.mark.parametrize('config', ['gs://bucket/mine.py', 'gs://bucket/mine.py:a', 'gs://bucket/mine/config.json'])
@pytest.mark.parametrize('script', RUNS)
def test_a_file_in_a_bucket_is_no_config(launch, script, config):
  result = launch(script, *RUNS[script], '--dry-run', '--', f'--config={config}', '--workdir=gs://bucket/a')
  assert (result.returncode, result.stdout) == (2, '')
  assert re.match(f"{script}: --config='{config}': .*the workdir of a run", result.stderr)


@pytest.fixture
def checkout(tmp_path):
  """A checkout with the launchers, of which git ignores the runs; returns its folder."""
  folder = tmp_path / 'checkout'
  shutil.copytree(LAUNCH, folder / 'launch')
  for file in ('configs/digits_resnet20.py', 'configs/mine.py', 'configs/mine.json', 'kept/config.json'):
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).touch()
  (folder / 'runs' / 'mine').mkdir(parents=True)
  (folder / 'runs' / 'mine' / 'config.json').touch()
  (folder / '.gitignore').write_text('/runs/\n')
  subprocess.run(['git', 'init', '-q', folder], check=True)
  return folder


@pytest.mark.parametrize('script', ELSEWHERE)
def test_a_config_is_in_the_copy_of_the_checkout_that_the_machines_get(launch, tmp_path, checkout, script):
  (tmp_path / 'own.py').touch()
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'own.py').touch()
  there = ['digits_resnet20', 'digits_resnet20.py:fast', 'configs/digits_resnet20.py', 'configs/mine.py:a']
  there += ['configs/mine.json', 'kept', 'kept/config.json']
  here = ['own.py', 'configs/own.py', '../own.py', str(tmp_path / 'own.py'), str(checkout / 'configs' / 'mine.py')]
  (there if script == 'gke_jobset.sh' else here).extend(['runs/mine', 'runs/mine/config.json'])
  for config in (*there, *here):
    flags = (f'--config={config}', '--workdir=gs://bucket/a')
    result = launch(checkout / 'launch' / script, *RUNS[script], '--dry-run', '--', *flags)
    if config in there:
      assert result.returncode == 0, result.stderr
    else:
      assert (result.returncode, result.stdout) == (2, ''), config
      assert re.fullmatch(
        f"{script}: --config='{re.escape(config)}' is not in the checkout.*configs/mine.json.*gs://.*\n", result.stderr
      )


@pytest.mark.parametrize(('script', 'option'), [('gke_jobset.sh', '--claim=c'), ('skypilot.sh', '--bucket=s3://data')])
def test_a_config_below_a_mount_needs_what_is_mounted(launch, script, option):
  options = [each for each in RUNS[script] if each != option]
  result = launch(script, *options, '--dry-run', '--', '--config=/mnt/dnt/mine', '--workdir=gs://bucket/a')
  assert (result.returncode, result.stdout) == (2, '')
  assert re.search(f'--config=/mnt/dnt/.* {option.partition("=")[0]},', result.stderr)


@pytest.mark.parametrize(
  ('flags', 'value'),
  [
    (['--workdir=runs/a b'], 'runs/a b'),
    (['--workdir', 'gs://bucket/a', '--config=c'], 'gs://bucket/a'),
    (['-workdir=a', '--config', '--workdir=no', '-workdir', 'b'], 'b'),
    (['--workdir=a=b', '--workdirs=c', '--config.workdir=d'], 'a=b'),
    (['--workdir=a', '--workdir='], ''),
    (['--workdir'], ''),
    ([], ''),
  ],
)
def test_a_flag_has_the_value_that_the_program_takes(flags, value):
  text = f'source {LAUNCH}/lib.sh; flag_of workdir "$@"'
  assert subprocess.run(['bash', '-c', text, 'bash', *flags], capture_output=True, text=True).stdout == value
  if '--config' not in flags and flags != ['--workdir']:
    parsed = absl.flags.FlagValues()
    for name in ('workdir', 'workdirs', 'config', 'config.workdir'):
      absl.flags.DEFINE_string(name, '', name, flag_values=parsed)
    parsed(['program', *flags])
    assert parsed.workdir == value


@pytest.mark.parametrize('script', RUNS)
def test_the_workdir_and_the_config_may_stand_apart_and_the_last_counts(launch, script):
  flags = ('--workdir', 'no', '--config=absent.py', '--workdir', 'gs://bucket/a', '--config', CONFIG)
  assert launch(script, *RUNS[script], '--dry-run', '--', *flags).returncode == 0
  flags = ('--workdir=gs://bucket/a', f'--config={CONFIG}', '--config', 'absent.py')
  assert 'absent.py' in launch(script, *RUNS[script], '--dry-run', '--', *flags).stderr


@pytest.mark.parametrize(
  ('command', 'package'),
  [
    (('tpu_pod.sh', 'install', '--dry-run', *POD), 'jax[tpu]'),
    (('skypilot.sh', '--name=a', '--accelerators=H100:8', *FLAGS), 'jax[cuda13]'),
    (('skypilot.sh', '--name=a', '--accelerators=tpu-v6e-8', *FLAGS), 'jax[tpu]'),
  ],
)
def test_what_is_installed_elsewhere_has_the_newest_versions_that_were_tested(launch, command, package):
  sentence = (LAUNCH.parent / 'README.md').read_text().partition('dnt runs on Linux with Python')[2].partition(';')[0]
  version, jax = re.findall(r'(3\.\d+) \(jax ([\d.]+)\)', sentence)[-1]
  constraints = LAUNCH.parent / f'constraints-{version}.txt'
  assert re.search(rf'(?m)^jax=={re.escape(jax)}', constraints.read_text())
  for optional in ('gcsfs', 'h5py', 'huggingface_hub'):
    assert re.search(f'(?m)^{optional}==', constraints.read_text())
  printed = launch(*command)
  assert f' --python {version} .venv' in printed.stdout
  assert f'"{package}" gcsfs h5py huggingface_hub -r requirements.txt -c {constraints.name}' in printed.stdout
  assert f'Python {version},' in launch('tpu_pod.sh', '--help').stdout


@pytest.mark.parametrize('script', RUNS)
def test_flags_that_the_launcher_sets_are_refused(launch, script):
  result = launch(script, *RUNS[script], '--dry-run', '--', '--workdir=gs://bucket/a', '--num_processes=3')
  assert result.returncode == 2
  assert re.fullmatch(f'{script}: --num_processes=3 .*launcher.*\n', result.stderr)


@pytest.mark.parametrize('script', RUNS)
def test_a_flag_with_a_line_break_is_refused(launch, script):
  result = launch(script, *RUNS[script], '--dry-run', '--', '--workdir=gs://bucket/a\nimage: other')
  assert (result.returncode, result.stdout) == (2, '')
  assert re.fullmatch(f'{script}: .*workdir.* line break.*\n', result.stderr)


@pytest.mark.parametrize('script', ['tpu_pod.sh', 'gke_jobset.sh', 'skypilot.sh'])
@pytest.mark.parametrize('name', ["it's", 'a"b', 'a b', 'a: b', '$(date)', 'a\nb', 'A', '-a', ''])
def test_a_name_that_is_none_is_refused(launch, script, name):
  options = [f'--name={name}' if option.startswith('--name=') else option for option in RUNS[script]]
  result = launch(script, *options, '--dry-run', '--', '--workdir=gs://bucket/a')
  assert (result.returncode, result.stdout) == (2, '')
  assert '--name=' in result.stderr and 'lower-case' in result.stderr


@pytest.mark.parametrize(
  ('script', 'program'),
  [('slurm.sh', 'sbatch'), ('tpu_pod.sh', 'gcloud'), ('gke_jobset.sh', 'kubectl'), ('skypilot.sh', 'sky')],
)
def test_a_missing_tool_is_named(launch, tmp_path, script, program):
  tools = tmp_path / 'tools'
  tools.mkdir()
  for name in ('bash', 'env', 'dirname', 'basename', 'sed', 'cat'):
    (tools / name).symlink_to(shutil.which(name))
  result = launch(script, *RUNS[script], '--', f'--config={CONFIG}', '--workdir=gs://bucket/a', path=str(tools))
  assert (result.returncode, result.stdout) == (2, '')
  assert re.search(f'{script}: {program} .*PATH', result.stderr)


@pytest.mark.parametrize('script', ['local.sh', 'tpu_pod.sh', 'gke_jobset.sh', 'skypilot.sh'])
def test_program_flags_before_the_dashes_are_refused(launch, script):
  result = launch(script, *RUNS[script], '--config=a.py')
  assert result.returncode == 2
  assert re.search("option '--config=a.py'.* after --", result.stderr)
