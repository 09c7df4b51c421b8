"""The pod is one fake worker: `gcloud` records its words and runs each ssh command here, in a home of its own."""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = str(ROOT / 'configs' / 'digits_resnet20.py')
COPIES = pytest.mark.skipif(not (ROOT / '.git').exists(), reason='what is copied is a git checkout')
PLACE = ('--name=pod', '--zone=us-central2-b')
GCLOUD = """
{ printf '%s\\n' "$@"; echo; } >> "$WORKER_HOME/gcloud.log"
for word in "$@"; do
  case "$word" in
    --command=*) HOME="$WORKER_HOME" exec bash -c "${word#--command=}" ;;
    *.tar.gz) if [[ -f $word ]]; then cp "$word" "$WORKER_HOME/dnt.tar.gz"; fi ;;
  esac
done
"""
PYTHON = """
trap 'echo saved; exit 0' TERM
printf 'argument %s\\n' "$@"
if [[ -n $(compgen -G "$HOME/fail") ]]; then exit 3; fi
while [[ -n $(compgen -G "$HOME/go-on") ]]; do sleep 0.05; done
"""


@pytest.fixture
def worker(tmp_path, fake):
  """The worker's home, with an environment whose python is a fake."""
  home = tmp_path / 'home'
  python = home / 'dnt' / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text(f'#!/bin/bash\n{PYTHON}')
  python.chmod(0o755)
  fake('gcloud', GCLOUD)
  fake('sudo', 'echo "sudo $*" >> "$WORKER_HOME/sudo.log"')
  return home


@pytest.fixture
def pod(launch, worker):
  return lambda *arguments, **options: launch('tpu_pod.sh', *arguments, WORKER_HOME=str(worker), **options)


def calls(worker):
  return [call.split('\n') for call in (worker / 'gcloud.log').read_text().strip().split('\n\n')]


def test_create_describes_the_slice(pod, worker):
  assert pod('create', *PLACE, '--type=v4-32', '--project=mine', '--spot').returncode == 0
  assert calls(worker) == [
    [
      'compute',
      'tpus',
      'tpu-vm',
      'create',
      'pod',
      '--accelerator-type=v4-32',
      '--version=tpu-ubuntu2204-base',
      '--spot',
    ]
    + ['--zone=us-central2-b', '--project=mine']
  ]


@pytest.mark.parametrize(
  ('kind', 'version'),
  [('v5litepod-16', 'v2-alpha-tpuv5-lite'), ('v5p-16', 'v2-alpha-tpuv5'), ('v6e-8', 'v2-alpha-tpuv6e')],
)
def test_the_runtime_follows_from_the_type(pod, kind, version):
  assert f'--version={version} ' in pod('create', *PLACE, f'--type={kind}', '--dry-run').stdout
  assert '--version=own ' in pod('create', *PLACE, f'--type={kind}', '--version=own', '--dry-run').stdout


@COPIES
def test_copy_brings_the_checkout_to_every_worker(pod, worker):
  result = pod('copy', *PLACE)
  assert result.returncode == 0, result.stderr
  assert (worker / 'dnt' / 'launch' / 'tpu_pod.sh').read_bytes() == (ROOT / 'launch' / 'tpu_pod.sh').read_bytes()
  assert not (worker / 'dnt' / '.git').exists()
  assert not (worker / 'dnt.tar.gz').exists()
  assert all('--worker=all' in call for call in calls(worker))


def test_run_starts_the_program_follows_it_and_gives_its_exit_code(pod, worker):
  flags = [f'--config={CONFIG}', "--workdir=/mnt/dnt/it's a run", '--config.seed=1']
  for fails, code in ((False, 0), (True, 3)):
    if fails:
      (worker / 'fail').touch()
    result = pod('run', *PLACE, '--', *flags)
    assert result.returncode == code, result.stderr
    assert result.stdout.splitlines() == [f'argument {word}' for word in ('-m', 'dnt.main', *flags, '--distributed')]
  starting, following = calls(worker)[:2]
  assert '--worker=all' in starting
  assert '--worker=0' in following


def test_resume_repeats_the_last_run_with_its_mount(pod, worker):
  first = pod('run', *PLACE, '--nfs=10.0.0.2:/share', '--', '--workdir=/mnt/dnt/run1')
  again = pod('resume', *PLACE)
  assert again.stdout == first.stdout != ''
  mounts = [line for line in (worker / 'sudo.log').read_text().splitlines() if 'mount' in line]
  assert mounts == ['sudo mount -t nfs 10.0.0.2:/share /mnt/dnt'] * 2


def test_stop_and_status_of_a_run_that_goes_on(pod, worker, fake):
  (worker / 'go-on').touch()
  environment = {**os.environ, 'PATH': fake.path, 'WORKER_HOME': str(worker)}
  following = subprocess.Popen(
    [ROOT / 'launch' / 'tpu_pod.sh', 'run', *PLACE, '--', '--workdir=/mnt/dnt/run1'],
    env=environment,
    stdout=subprocess.PIPE,
    text=True,
  )
  while 'distributed' not in following.stdout.readline():
    assert following.poll() is None
  pid = int((worker / 'dnt-run' / 'pid').read_text())
  try:
    assert ': running: argument --distributed' in pod('status', *PLACE).stdout
    second = pod('run', *PLACE, '--', '--workdir=/mnt/dnt/run2')
    assert second.returncode == 1
    assert re.search('a run .*stop', second.stderr)
    assert pod('stop', *PLACE).returncode == 0
    assert following.communicate(timeout=10)[0] == 'saved\n'
    assert following.returncode == 0
    assert ': ended with exit code 0: saved' in pod('status', *PLACE).stdout
  finally:
    (worker / 'go-on').unlink()
    deadline = time.monotonic() + 5
    while pathlib.Path(f'/proc/{pid}').exists() and time.monotonic() < deadline:
      time.sleep(0.05)
    if pathlib.Path(f'/proc/{pid}').exists():
      os.kill(pid, signal.SIGKILL)


def test_fetch_and_delete(pod, tmp_path):
  assert shlex.split(pod('fetch', '/mnt/dnt/run1', *PLACE, '--dry-run').stdout) == [
    *('gcloud', 'compute', 'tpus', 'tpu-vm', 'scp', 'pod:/mnt/dnt/run1', 'runs', '--recurse', '--worker=0'),
    '--zone=us-central2-b',
  ]
  assert not (tmp_path / 'runs').exists()
  assert pod('fetch', '/mnt/dnt/run1', 'here', *PLACE).returncode == 0
  assert (tmp_path / 'here').is_dir()
  assert pod('delete', *PLACE, '--dry-run').stdout == 'gcloud compute tpus tpu-vm delete pod --zone=us-central2-b\n'


@pytest.mark.parametrize(
  'action',
  ['create --type=v4-8', pytest.param('copy', marks=COPIES), 'install', 'resume', 'stop', 'status', 'delete'],
)
def test_dry_run_does_nothing(pod, worker, action):
  result = pod(*action.split(), *PLACE, '--dry-run')
  assert result.returncode == 0
  assert all(shlex.split(line)[0] in ('gcloud', 'tar') for line in result.stdout.splitlines())
  assert not (worker / 'gcloud.log').exists()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('launch',), "'launch'.* create, copy, install, run, resume, stop, status, fetch, delete"),
    (('status', '--zone=us-central2-b'), "--name='' .*lower-case"),
    (('status', '--name=Pod', '--zone=us-central2-b'), "--name='Pod' .*lower-case"),
    (('status', '--name=pod', '--zone=us'), "--zone='us' .*us-central2-b"),
    (('create', *PLACE), '--type=TYPE'),
    (('create', *PLACE, '--type=v9-8'), 'runtime .*--type=v9-8.* --version'),
    (('run', *PLACE, '--', f'--config={CONFIG}'), "--workdir='' .*absolute path.* share"),
    (('run', *PLACE, '--', '--workdir=runs/a'), "--workdir='runs/a' .*absolute path"),
    (('resume', *PLACE, '--', '--workdir=/a'), 'only run .*flags'),
    (('status', *PLACE, 'extra'), "argument 'extra'"),
    (('fetch', *PLACE), r'fetch REMOTE_DIR \[LOCAL_DIR\]'),
  ],
)
def test_bad_input_is_refused(pod, worker, arguments, message):
  result = pod(*arguments)
  assert (result.returncode, result.stdout) == (2, '')
  assert re.search(message, result.stderr)
  assert not (worker / 'gcloud.log').exists()
