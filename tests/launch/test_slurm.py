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
  assert (
    result.stdout.splitlines()
    == [
      '--kill-on-bad-exit=0',
      '--wait=900',  # 300 s for the others, and ten minutes
      '--label',
      '/env/bin/python',
      '-m',
      'dnt.main',
      *PROGRAM[1:],
      '--distributed',
      f'cpus={cpus}',
      f'path={pathlib.Path(__file__).parents[2]}:/mine',
    ]
  )


# As man srun says: with --kill-on-bad-exit=1 the first task that fails ends the others, and so does --wait, here in
# milliseconds, once one has ended; the highest code is srun's.
SRUN = """
for word in "$@"; do
  case "$word" in
    --kill-on-bad-exit=*) kills="${word#*=}" ;;
    --wait=*) limit="${word#*=}" ;;
    --*) ;;
    *) break ;;
  esac
  shift
done
for task in 0 1; do SLURM_PROCID=$task "$@" & done
highest=0
for task in 0 1; do
  code=0
  wait -n || code=$?
  if ((code > highest)); then highest=$code; fi
  if ((code && kills)); then kill -TERM $(jobs -pr) 2> /dev/null; fi
  for ((t = 0; t < limit; t += 100)); do [[ -n $(jobs -pr) ]] || break; sleep 0.1; done
  if ((limit)); then kill -KILL $(jobs -pr) 2> /dev/null; fi
done
exit "$highest"
"""


@pytest.mark.parametrize('code', [1, 2, 127])
def test_a_job_that_fails_before_its_processes_have_met_is_not_requeued(launch, fake, tmp_path, code):
  fake('py', f'if ((SLURM_PROCID)); then exit {code}; fi\nsleep 0.1\nexit 1')  # the other is missing after a time
  script = launch('slurm.sh', '--nodes=2', '--dry-run', *PROGRAM, PYTHON='py').stdout.partition('\n')[2]
  fake('srun', SRUN)
  fake('scontrol', f'echo "$@" > {tmp_path}/scontrol')
  result = subprocess.run(['bash'], input=script, env={'PATH': fake.path, 'SLURM_JOB_ID': '7'}, text=True)
  assert result.returncode == code
  assert not (tmp_path / 'scontrol').exists()


@pytest.mark.parametrize(('others', 'code', 'requeued'), [(0, 137, False), (1, 137, False), (143, 143, True)])
def test_a_process_that_hangs_does_not_hold_the_nodes(launch, fake, tmp_path, others, code, requeued):
  fake('py', f'if ((SLURM_PROCID)); then exit {others}; fi\nexec sleep 30')
  script = launch('slurm.sh', '--nodes=2', '--dry-run', *PROGRAM, PYTHON='py').stdout.partition('\n')[2]
  fake('srun', SRUN)
  fake('scontrol', f'echo "$@" > {tmp_path}/scontrol')
  result = subprocess.run(['bash'], input=script, env={'PATH': fake.path, 'SLURM_JOB_ID': '7'}, text=True)
  assert result.returncode == code
  assert (tmp_path / 'scontrol').exists() == requeued


def test_a_process_may_wait_for_the_others_as_long_as_it_is_told(launch):
  printed = launch('slurm.sh', '--nodes=2', '--dry-run', *PROGRAM, '--join_timeout', '1200').stdout
  assert ' --wait=1800 ' in printed.splitlines()[-1]


@pytest.mark.parametrize(
  ('option', 'said'),
  [
    ('--mem=9G', 1),
    ('--exclusive=user', 1),
    ('--exclusive=mcs', 1),
    ('--cpus-per-task=8', 0),
    ('--cpus-per-gpu=8', 0),
    ('--exclusive', 0),
  ],
)
def test_a_task_of_one_cpu_is_said(launch, option, said):
  result = launch('slurm.sh', '--nodes=2', option, '--dry-run', *PROGRAM)
  assert (result.returncode, result.stderr.count('one CPU')) == (0, said)


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
    (('--nodes=2', *PROGRAM, '--join_timeout=soon'), "--join_timeout .*at least 1.* 'soon'"),
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
