import pathlib
import re
import subprocess

import pytest

CONFIG = str(pathlib.Path(__file__).parents[2] / 'configs' / 'digits_resnet20.py')
PROGRAM = ('--', f'--config={CONFIG}', '--workdir=/shared/run 1')


def test_submits_the_script_that_dry_run_prints(launch, fake, tmp_path):
  options = ('--nodes=2', '--gpus-per-node=4', '--time=12:00:00', '--exclusive')
  printed = launch('slurm.sh', *options, '--dry-run', *PROGRAM).stdout
  command, _, script = printed.partition('\n')
  assert command == f'sbatch {" ".join(options)} --job-name=dnt-digits_resnet20'
  fake('sbatch', f'echo sbatch "$@" > {tmp_path}/command; cat > {tmp_path}/script; echo Submitted batch job 7')
  result = launch('slurm.sh', *options, *PROGRAM)
  assert (result.returncode, result.stdout) == (0, 'Submitted batch job 7\n')
  assert (tmp_path / 'command').read_text().strip() == command
  assert (tmp_path / 'script').read_text() == script


@pytest.mark.parametrize('cpus', ['', '12'])
def test_the_script_starts_one_labelled_task_a_node(launch, fake, tmp_path, cpus):
  script = launch('slurm.sh', '--nodes=2', '--dry-run', *PROGRAM, PYTHON='/env/bin/python').stdout.partition('\n')[2]
  lines = script.splitlines()
  assert '#SBATCH --ntasks-per-node=1' in lines
  assert '#SBATCH --signal=TERM@120' in lines
  fake('srun', 'printf "%s\\n" "$@"; echo "cpus=$SRUN_CPUS_PER_TASK"; echo "path=$PYTHONPATH"')
  environment = {'PATH': fake.path, 'SLURM_CPUS_PER_TASK': cpus, 'PYTHONPATH': '/mine'}
  result = subprocess.run(['bash'], input=script, env=environment, capture_output=True, text=True, check=True)
  assert result.stdout.splitlines() == [
    '--kill-on-bad-exit=1',
    '--label',
    '/env/bin/python',
    '-m',
    'dnt.main',
    *PROGRAM[1:],
    '--distributed',
    f'cpus={cpus}',
    f'path={pathlib.Path(__file__).parents[2]}:/mine',
  ]


def test_a_job_name_of_ones_own_stays(launch):
  printed = launch('slurm.sh', '--job-name=mine', '--dry-run', *PROGRAM).stdout
  assert printed.startswith('sbatch --job-name=mine\n')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--nodes=0', *PROGRAM), "--nodes .*at least 1.* '0'"),
    (('--nodes=2', '--job-name=a/b', *PROGRAM), '--job-name=a/b .*slash'),
    (('--ntasks=8', *PROGRAM), '--ntasks=8.* one task a node'),
    (('--nodes', '2', *PROGRAM), "--name=value.* '2'"),
    (('--nodes=2', '--', f'--config={CONFIG}'), '--workdir=DIR .*share'),
  ],
)
def test_bad_input_is_refused(launch, fake, arguments, message):
  fake('sbatch', 'echo submitted')
  result = launch('slurm.sh', *arguments)
  assert (result.returncode, result.stdout) == (2, '')
  assert re.search(message, result.stderr)


@pytest.mark.parametrize(
  ('code', 'cancelled', 'requeued'),
  [(143, False, True), (143, True, False), (0, False, False), (1, False, False), (130, False, False)],
)
def test_a_job_that_has_saved_at_its_time_limit_is_requeued(launch, fake, tmp_path, code, cancelled, requeued):
  script = launch('slurm.sh', '--nodes=2', '--dry-run', *PROGRAM).stdout.partition('\n')[2]
  assert '#SBATCH --open-mode=append' in script.splitlines(), 'or the second part would overwrite the output'
  fake('srun', f'{"kill -TERM $PPID" if cancelled else ""}\nexit {code}')
  fake('scontrol', f'echo "$@" > {tmp_path}/scontrol')
  result = subprocess.run(['bash'], input=script, env={'PATH': fake.path, 'SLURM_JOB_ID': '7'}, text=True)
  assert result.returncode == code
  assert (tmp_path / 'scontrol').exists() == requeued
  if requeued:
    assert (tmp_path / 'scontrol').read_text() == 'requeue 7\n'


def test_a_job_that_may_not_queue_again_says_what_goes_on(launch, fake):
  script = launch('slurm.sh', '--nodes=2', '--no-requeue', '--dry-run', *PROGRAM).stdout.partition('\n')[2]
  fake('srun', 'exit 143')
  fake('scontrol', 'exit 1')
  environment = {'PATH': fake.path, 'SLURM_JOB_ID': '7'}
  result = subprocess.run(['bash'], input=script, env=environment, capture_output=True, text=True)
  assert result.returncode == 143
  assert 'same launch/slurm.sh command' in result.stderr
