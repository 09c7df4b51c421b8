"""The pod is one fake worker: `gcloud` records its words and runs each ssh command here, in a home of its own."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = 'configs/digits_resnet20.py'
COPIES = pytest.mark.skipif(not (ROOT / '.git').exists(), reason='what is copied is a git checkout')
PLACE = ('--name=pod', '--zone=us-central2-b')
# Of the states in the file of its kind, describe prints the first and drops it, but for the last. What a deleted
# machine had is gone. A file `cut` cuts the connection to worker 0 once, and a file `refuses` that to all workers for
# a command that holds its text. A file `others` holds what the other workers once say of their run, and a file `stock`
# has a line for each slice that is not to be had: what gcloud says. The state Ctrl-C interrupts all but gcloud itself.
GCLOUD = """
{ printf '%s\\n' "$@"; echo; } >> "$WORKER_HOME/gcloud.log"
states="$WORKER_HOME/$3.states"
case "$4" in
  describe)
    if [[ $(head -n 1 "$states" 2> /dev/null) == Ctrl-C ]]; then trap '' INT; kill -INT 0; fi
    if [[ -s $states ]]; then head -n 1 "$states"; sed -i '1{$!d}' "$states"; fi
    ;;
  delete) rm -rf "$WORKER_HOME/dnt-run" ;;
  create)
    if [[ -s $WORKER_HOME/stock ]]; then
      head -n 1 "$WORKER_HOME/stock" >&2
      sed -i 1d "$WORKER_HOME/stock"
      exit 1
    fi
    ;;
esac
for word in "$@"; do
  case "$word" in
    --worker=all)
      text="$(cat "$WORKER_HOME/refuses" 2> /dev/null)"
      if [[ -n $text && $* == *"$text"* ]]; then rm "$WORKER_HOME/refuses"; exit 255; fi
      if [[ -e $WORKER_HOME/others && $* == *hostname* && $* != *start.sh* ]]; then
        cat "$WORKER_HOME/others"
        rm "$WORKER_HOME/others"
      fi
      ;;
    --worker=0) if [[ -e $WORKER_HOME/cut ]]; then rm "$WORKER_HOME/cut"; exit 255; fi ;;
    --command=*) HOME="$WORKER_HOME" exec bash -c "${word#--command=}" ;;
    *.tar.gz) if [[ -f $word ]]; then cp "$word" "$WORKER_HOME/dnt.tar.gz"; fi ;;
  esac
done
"""
# Each line of the file `ends` is how one run ends: with an exit code, or `vanished` together with what waits for it.
PYTHON = """
trap 'echo saved; exit 0' TERM
echo "$JAX_PLATFORMS" > "$HOME/platforms"
printf 'argument %s\\n' "$@"
if [[ -n $(compgen -G "$HOME/fail") ]]; then exit 3; fi
if [[ $1 == -m && -s $HOME/ends ]]; then
  end="$(head -n 1 "$HOME/ends")"
  sed -i 1d "$HOME/ends"
  if [[ $end == vanished ]]; then kill -KILL "$PPID"; exit 1; fi
  exit "$end"
fi
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


@pytest.fixture
def quick(worker, fake):
  """No one waits, but a second for an exit code; install makes an environment with the same fake python."""
  fake('sleep', f'if [[ $1 == 0.5 ]]; then set -- 0.1; else set -- 0.01; fi; exec {shutil.which("sleep")} "$1"')
  fake('python3', '')
  uv = worker / '.local' / 'bin' / 'uv'
  uv.parent.mkdir(parents=True)
  uv.write_text('#!/bin/bash\n')
  uv.chmod(0o755)


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


@pytest.mark.parametrize('zone', ['us-central2-b', 'us-south1-ai1b', 'northamerica-northeast1-c'])
def test_the_zones_of_google_are_taken(pod, zone):
  result = pod('status', '--name=pod', f'--zone={zone}', '--dry-run')
  assert (result.returncode, result.stderr) == (0, '')


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


@COPIES
def test_copy_removes_the_modules_that_it_brought_before_and_nothing_else(pod, worker):
  before = {'nets/__init__.py': '', 'a net of mine.py': '', 'photos/1.png': '', CONFIG: 'old'}
  mine = {'runs/a/config.json': '{}', 'data/1.png': '', 'nets/weights.npy': '', 'own.py': ''}
  for name, text in (before | mine).items():
    (worker / 'dnt' / name).parent.mkdir(parents=True, exist_ok=True)
    (worker / 'dnt' / name).write_text(text)
  (worker / 'dnt' / '.copied').write_text(''.join(f'{name}\0' for name in before))
  assert pod('copy', *PLACE).returncode == 0
  assert {name for name in before | mine if (worker / 'dnt' / name).exists()} == {
    CONFIG,
    'photos/1.png',
    *mine,
  }
  assert (worker / 'dnt' / CONFIG).read_bytes() == (ROOT / CONFIG).read_bytes()
  assert (worker / 'dnt' / '.venv').exists()
  copied = set((worker / 'dnt' / '.copied').read_text().split('\0'))
  assert CONFIG in copied and not copied & before.keys() - {CONFIG}


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize(('times', 'code'), [(2, 0), (99, 1)])
def test_install_waits_for_a_machine_that_updates_itself(pod, worker, fake, times, code):
  (worker / 'locked').write_text('x\n' * times)
  held = 'if [[ -s $WORKER_HOME/locked ]]; then sed -i 1d "$WORKER_HOME/locked"; exit 100; fi'
  fake('sudo', f'echo "sudo $*" >> "$WORKER_HOME/sudo.log"; if [[ $* == *update* ]]; then {held}; fi')
  assert pod('install', *PLACE).returncode == code
  commands = (worker / 'sudo.log').read_text().splitlines()
  assert commands.count('sudo apt-get update -q') == min(times + 1, 30)
  assert [command for command in commands if 'Lock::Timeout' in command and 'install' in command] == (
    [] if code else ['sudo apt-get -o DPkg::Lock::Timeout=600 install -qy nfs-common python3-pip']
  )


def test_run_starts_the_program_follows_it_and_gives_its_exit_code(pod, worker):
  for workdir, fails, code in (('gs://bucket/run', False, 0), ("/mnt/dnt/it's a run", True, 3)):
    (worker / 'gcloud.log').unlink(missing_ok=True)
    flags = [f'--config={CONFIG}', f'--workdir={workdir}', '--config.seed=1']
    if fails:
      (worker / 'fail').touch()
    result = pod('run', *PLACE, '--', *flags)
    assert result.returncode == code, result.stderr
    assert result.stdout.splitlines() == [f'argument {word}' for word in ('-m', 'dnt.main', *flags, '--distributed')]
  assert (worker / 'platforms').read_text() == 'tpu,cpu\n'
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
    assert following.communicate(timeout=60)[0] == 'saved\n'
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
    (('create', *PLACE, '--type=v5litepod-24'), '--type=v5litepod-24.*chips: 1, 4, 8, 16'),
    (('create', *PLACE, '--type=v5p-20'), '--type=v5p-20.*TensorCores'),
    (('create', *PLACE, "--project=it's", '--type=v4-8'), "--project='it's' .*id"),
    (('create', *PLACE, '--type=v4-8', '--', f'--config={CONFIG}'), 'only run .*--preflight'),
    (('create', *PLACE, '--type=v4-8', '--preflight'), '--preflight .*--config='),
    (('create', *PLACE, '--type=v3-8', '--preflight', '--', f'--config={CONFIG}'), '--preflight .*--type=v3-8'),
    (('run', *PLACE, '--preflight', '--', f'--config={CONFIG}', '--workdir=/a'), '--type=TYPE'),
    (('run', *PLACE, '--recreate', '--', f'--config={CONFIG}', '--workdir=/a'), '--type=TYPE'),
    (('stop', *PLACE, '--recreate'), '--recreate .*run'),
    (('resume', *PLACE, '--preflight'), '--preflight .*create and run'),
    (('run', *PLACE, '--stand_in=9:2', '--', f'--config={CONFIG}', '--workdir=/a'), '--stand_in .*--preflight'),
    (('create', *PLACE, '--type=v9-8'), 'runtime .*--type=v9-8.* --version'),
    (('run', *PLACE, '--', f'--config={CONFIG}'), "--workdir='' .*absolute path.* share"),
    (('run', *PLACE, '--', '--workdir=runs/a'), "--workdir='runs/a' .*absolute path"),
    (('run', *PLACE, '--', '--workdir=gs://bucket'), "--workdir='gs://bucket' .*gs://BUCKET/PATH"),
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


def verbs(worker):
  """Returns the requests to gcloud: the verb of each, and for ssh the worker."""
  found = []
  for call in calls(worker):
    workers = [word.removeprefix('--worker=') for word in call if word.startswith('--worker=')]
    found.append(' '.join(call[2:4] + (workers if call[3] == 'ssh' else [])))
  return found


def test_create_says_what_the_type_is(pod, worker):
  result = pod('create', *PLACE, '--type=v5p-16')
  assert (result.returncode, result.stdout) == (0, '')
  assert re.fullmatch('v5p-16: 2x2x2, 8 chips, 2 hosts\n', result.stderr)


@pytest.mark.usefixtures('quick')
def test_a_queued_slice_is_waited_for(pod, worker):
  (worker / 'queued-resources.states').write_text('WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n')
  (worker / 'tpu-vm.states').write_text('CREATING\nREADY\n')
  result = pod('create', *PLACE, '--type=v5litepod-16', '--queued', '--spot')
  assert result.returncode == 0, result.stderr
  first, *questions = calls(worker)
  assert first == [
    *('compute', 'tpus', 'queued-resources', 'create', 'pod', '--accelerator-type=v5litepod-16', '--node-id=pod'),
    *('--runtime-version=v2-alpha-tpuv5-lite', '--spot', '--zone=us-central2-b'),
  ]
  assert len(questions) == 6  # the queue four times, and the slice twice
  assert result.stderr.count('pod: ') == 4 and 'pod: WAITING_FOR_RESOURCES' in result.stderr


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize('state', ['FAILED', 'SUSPENDED', ''])
def test_a_request_that_is_not_granted_fails(pod, worker, state):
  (worker / 'queued-resources.states').write_text(f'{state}\n')
  result = pod('create', *PLACE, '--type=v5litepod-16', '--queued')
  assert result.returncode == 1
  assert re.search(f'not made .{state or "no answer"}.*delete --queued', result.stderr)


def test_a_queued_slice_is_deleted_with_its_request(pod):
  assert pod('delete', *PLACE, '--queued', '--dry-run').stdout == (
    'gcloud compute tpus queued-resources delete pod --force --zone=us-central2-b\n'
  )


RECREATE = ('run', '--recreate', '--spot', '--type=v5litepod-16', *PLACE)
RUN = ('--', f'--config={CONFIG}', "--workdir=/mnt/dnt/it's")


@COPIES
@pytest.mark.thorough
@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize('queued', [False, True])
def test_a_preempted_slice_is_made_again_and_the_run_goes_on(pod, worker, queued):
  (worker / 'ends').write_text('143\n143\n0\n')
  kind = 'queued-resources' if queued else 'tpu-vm'
  if queued:
    (worker / 'queued-resources.states').write_text('ACTIVE\nSUSPENDING\nSUSPENDED\nACTIVE\nSUSPENDED\nACTIVE\n')
    (worker / 'tpu-vm.states').write_text('READY\n')
  else:
    (worker / 'tpu-vm.states').write_text('READY\nSTOPPING\nPREEMPTED\nTERMINATED\nREADY\n')
  result = pod(*RECREATE, *(['--queued'] if queued else []), '--nfs=10.0.0.2:/share', *RUN)
  assert result.returncode == 0, result.stderr
  assert result.stdout.count('argument --distributed') == 3
  done = [verb for verb in verbs(worker) if 'describe' not in verb]
  start = ['tpu-vm ssh all', 'tpu-vm ssh 0']
  again = [f'{kind} delete', f'{kind} create', 'tpu-vm scp', 'tpu-vm ssh all', 'tpu-vm ssh all', *start]
  assert done == [*start, *again, *again]
  deletions = [call for call in calls(worker) if call[3] == 'delete']
  assert all('--quiet' in call for call in deletions), 'nobody is there to answer'
  created = [call for call in calls(worker) if call[3] == 'create']
  assert all('--spot' in call and '--accelerator-type=v5litepod-16' in call for call in created)


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize(('code', 'state'), [(143, 'READY'), (1, 'READY'), (2, 'READY\nPREEMPTED'), (143, '')])
def test_a_run_that_ends_by_itself_makes_no_slice(pod, worker, code, state):
  (worker / 'ends').write_text(f'{code}\n')
  (worker / 'tpu-vm.states').write_text(f'{state}\n')
  result = pod(*RECREATE, *RUN)
  assert result.returncode == code
  assert ('nothing says what state pod is in' in result.stderr) == (not state)
  assert {verb for verb in verbs(worker) if 'ssh' not in verb} <= {'tpu-vm describe'}


NO_CAPACITY = (
  'ERROR: (gcloud.compute.tpus.tpu-vm.create) { "code": 8, "message": "There is no more capacity in the zone'
)
QUOTA = (
  'ERROR: { "code": 8, "message": "Quota limit TPUV5sPreemptible has been exceeded.", "status": "RESOURCE_EXHAUSTED"'
)


@COPIES
@pytest.mark.thorough
@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize('queued', [False, True])
def test_a_slice_that_is_not_to_be_had_is_asked_for_again(pod, worker, queued):
  (worker / 'ends').write_text('143\n0\n')
  if queued:  # at first, while the run starts; the first one is preempted at once, the second request fails
    states = ('ACTIVE', 'SUSPENDED', 'SUSPENDED', 'SUSPENDED', 'FAILED', 'FAILED', 'ACTIVE')
    (worker / 'queued-resources.states').write_text('\n'.join(states))
    (worker / 'tpu-vm.states').write_text('READY\n')
  else:  # at first, after the run; nothing is there after two requests
    (worker / 'tpu-vm.states').write_text('\n'.join(['READY', 'PREEMPTED', *[''] * 20, 'READY']))
    (worker / 'stock').write_text(f'{NO_CAPACITY}\nERROR: UNAVAILABLE: The service is currently unavailable.\n')
  result = pod(*RECREATE, *(['--queued'] if queued else []), *RUN)
  assert result.returncode == 0, result.stderr
  assert result.stderr.count('no slice to be had; it is requested every few minutes') == (0 if queued else 2)
  assert (NO_CAPACITY in result.stderr) != queued
  kind = 'queued-resources' if queued else 'tpu-vm'
  made = [verb for verb in verbs(worker) if verb.endswith(('create', 'delete', 'scp'))]
  request = [f'{kind} delete', f'{kind} create'] if queued else [f'{kind} create']
  assert made == [f'{kind} delete', f'{kind} create', *request, *request, 'tpu-vm scp']


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize(
  ('refusal', 'queued'),
  [
    (QUOTA, False),
    (QUOTA, True),
    ('ERROR: Reauthentication failed. cannot prompt during non-interactive execution.', False),
    ('ERROR: PERMISSION_DENIED: Permission tpu.nodes.create denied. code: 403', False),
  ],
)
def test_what_gcloud_refuses_for_good_ends_the_wait(pod, worker, refusal, queued):
  kind = 'queued-resources' if queued else 'tpu-vm'
  (worker / f'{kind}.states').write_text('SUSPENDED\n\n')
  (worker / 'stock').write_text(f'{refusal}\n{refusal}\n')
  result = pod(*RECREATE, *(['--queued'] if queued else []), *RUN)
  assert result.returncode == 1
  assert result.stderr.count(refusal) == 1
  assert 'create failed with exit code 1; the run does not go on' in result.stderr
  assert [verb for verb in verbs(worker) if 'describe' not in verb] == [f'{kind} delete', f'{kind} create']


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize('arguments', [('create', '--type=v5litepod-16'), ('run', '--recreate', '--type=v5litepod-16')])
def test_ctrl_c_says_how_to_delete_what_remains(pod, worker, arguments):
  before = ['SUSPENDED'] if arguments[0] == 'run' else []  # it has run
  (worker / 'queued-resources.states').write_text('\n'.join([*before, 'WAITING_FOR_RESOURCES', 'Ctrl-C']))
  result = pod(*arguments, *PLACE, '--queued', *(RUN if before else ()))
  assert result.returncode == 130
  assert 'pod, or the request for it, may remain and be billed' in result.stderr
  program, *words = shlex.split(result.stderr.splitlines()[-1])
  assert pathlib.Path(program) == ROOT / 'launch' / 'tpu_pod.sh'
  assert pod(*words, '--dry-run').stdout == pod('delete', *PLACE, '--queued', '--dry-run').stdout


@COPIES
@pytest.mark.usefixtures('quick')
def test_a_slice_that_is_preempted_before_the_run_or_while_it_is_made_is_made_again(pod, worker):
  (worker / 'tpu-vm.states').write_text('PREEMPTED\nPREEMPTED\nREADY\n')
  (worker / 'refuses').write_text('apt-get')
  result = pod(*RECREATE, *RUN)
  assert result.returncode == 0, result.stderr
  assert result.stderr.count('pod is PREEMPTED; it is made again') == 2
  assert result.stdout.count('argument --distributed') == 1
  made = ['tpu-vm delete', 'tpu-vm create', 'tpu-vm scp', 'tpu-vm ssh all', 'tpu-vm ssh all']
  done = [verb for verb in verbs(worker) if 'describe' not in verb]
  assert done == [*made, *made, 'tpu-vm ssh all', 'tpu-vm ssh 0'], 'the first install failed, and nothing followed it'


@pytest.mark.usefixtures('quick')
def test_a_start_that_fails_on_a_slice_that_is_there_ends_with_a_line(pod, worker):
  for options, where in ((RECREATE, ', and pod is READY'), (('run', *PLACE), '')):
    (worker / 'tpu-vm.states').write_text('READY\n')
    (worker / 'refuses').write_text('start.sh')
    result = pod(*options, *RUN)
    assert (result.returncode, result.stdout) == (255, '')
    assert f'start failed with exit code 255{where}; the run does not go on' in result.stderr
  assert not {'tpu-vm delete', 'tpu-vm ssh 0'} & {*verbs(worker)}


@pytest.mark.usefixtures('quick')
def test_a_lost_connection_is_made_again(pod, worker):
  (worker / 'tpu-vm.states').write_text('READY\n')
  (worker / 'cut').touch()
  result = pod(*RECREATE, *RUN)
  assert result.returncode == 0, result.stderr
  assert [verb for verb in verbs(worker) if 'ssh' in verb] == ['tpu-vm ssh all', 'tpu-vm ssh 0', 'tpu-vm ssh 0']
  assert 'argument --distributed' in result.stdout


@pytest.mark.thorough
@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize('seconds', [0, 0.3])
def test_a_run_whose_machine_has_restarted_does_not_keep_one_waiting(pod, worker, fake, seconds):
  # A run that is slow to learn when its process began vanishes before it has written the number of the process.
  fake('sed', f'[[ $* != */proc/* ]] || {shutil.which("sleep")} {seconds}; exec {shutil.which("sed")} "$@"')
  (worker / 'ends').write_text('vanished\n')
  result = pod('run', *PLACE, *RUN)
  assert result.returncode == 1
  assert re.search('without an exit code.* restarted', result.stderr)
  assert 'ended without an exit code' in pod('status', *PLACE).stdout
  (worker / 'ends').write_text('vanished\n')
  (worker / 'tpu-vm.states').write_text('REPAIRING\nREADY\n')
  result = pod(*RECREATE, *RUN)
  assert result.returncode == 0, result.stderr
  assert (worker / 'dnt-run' / 'log.2').exists(), 'it was not started again'


@pytest.mark.thorough
@pytest.mark.usefixtures('quick')
def test_a_run_that_ends_its_machine_each_time_is_not_started_for_ever(pod, worker):
  (worker / 'ends').write_text('vanished\n' * 9)
  (worker / 'tpu-vm.states').write_text('READY\n')
  result = pod(*RECREATE, *RUN)
  assert result.returncode == 1
  assert re.search('last three starts .*does not go on; pod remains', result.stderr)
  assert [verb for verb in verbs(worker) if 'ssh' in verb] == ['tpu-vm ssh all', 'tpu-vm ssh 0'] * 4


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize('code', [1, 143])
def test_a_restart_of_another_machine_starts_the_run_again(pod, worker, code):
  """Worker 0 ends by itself when another one is lost."""
  (worker / 'ends').write_text(f'{code}\n0\n')
  (worker / 'tpu-vm.states').write_text('READY\n')
  (worker / 'refuses').write_text('hostname): $how')  # a machine that restarts does not answer at first
  (worker / 'others').write_text('w-1: ended without an exit code (killed, or the machine has restarted): step 3\n')
  result = pod(*RECREATE, *RUN)
  assert result.returncode == 0, result.stderr
  assert 'a machine of pod has restarted, or its run was killed; the run goes on' in result.stderr
  assert result.stdout.count('argument --distributed') == 2
  assert not {'tpu-vm delete', 'tpu-vm create'} & {*verbs(worker)}


@COPIES
def test_dry_run_prints_what_follows_a_preemption(pod, worker):
  lines = pod(*RECREATE, '--dry-run', *RUN).stdout.partition('# after a preemption:')[2].splitlines()
  verbs = [' '.join(shlex.split(line)[3:5]) for line in lines if line.startswith('gcloud') and line.endswith('-b')]
  assert verbs[:4] == ['tpu-vm delete', 'tpu-vm create', 'tpu-vm scp', 'tpu-vm ssh']
  assert not (worker / 'gcloud.log').exists()


def test_a_preflight_compiles_the_run_for_the_slice(pod, worker, fake, tmp_path):
  fake('my-python', f'printf "%s\\n" "$@" > {tmp_path}/words; pwd > {tmp_path}/folder; exit "$CODE"')
  flags = [f'--config={CONFIG}', '--config.model.depth', '20', '--workdir=/mnt/dnt/a', '--noconfig.optim.nesterov']
  for action in ('create', 'run'):
    options = (action, '--preflight', '--type=v5litepod-256', *PLACE, '--', *flags)
    for code in (1, 2):
      result = pod(*options, PYTHON='my-python', CODE=str(code))
      assert result.returncode == code
      assert re.search(f'preflight .*exit code {code}', result.stderr)
      assert not (worker / 'gcloud.log').exists(), 'something was done on the cloud'
    assert pod(*options, PYTHON='my-python', CODE='0').returncode == 0
    assert verbs(worker)[0] == {'create': 'tpu-vm create', 'run': 'tpu-vm ssh all'}[action]
    (worker / 'gcloud.log').unlink()
    config = [flag for flag in flags if 'workdir' not in flag]
    assert (tmp_path / 'words').read_text().splitlines() == ['-m', 'dnt.rehearse', *config, '--on=v5e:16x16']
    assert (tmp_path / 'folder').read_text().strip() == str(ROOT)
  printed = pod(*options[:3], *PLACE, '--dry-run', '--', *flags).stdout
  assert shlex.split(printed.splitlines()[0])[-2:] == ['--noconfig.optim.nesterov', '--on=v5e:16x16']


@pytest.mark.parametrize('action', ['create', 'run'])
def test_a_preflight_takes_the_config_of_the_workdir_as_the_run_does(pod, worker, action):
  options = (action, '--preflight', '--type=v4-8', *PLACE, '--dry-run', '--')
  for flags in (['--workdir=gs://b/mine'], ['--workdir', 'gs://b/mine'], ['--workdir=/no', '--workdir=gs://b/mine']):
    printed = pod(*options, *flags, '--config.train.batch_size=64').stdout.splitlines()[0]
    wanted = ['dnt.rehearse', '--config=gs://b/mine', '--config.train.batch_size=64', '--on=v4:2x2x1']
    assert shlex.split(printed)[-4:] == wanted
  printed = pod(*options, *flags, '--config', CONFIG).stdout.splitlines()[0]
  assert shlex.split(printed)[-4:] == ['dnt.rehearse', '--config', CONFIG, '--on=v4:2x2x1']
  result = pod(*options, '--workdir=/mnt/dnt/a', '--config.train.batch_size=64')  # which only the workers see
  assert (result.returncode, result.stdout) == (2, '') and '--preflight needs the --config=' in result.stderr


def test_a_preflight_takes_an_interpreter_from_where_it_is_started(pod, fake, tmp_path):
  fake('my-python', f'pwd > {tmp_path}/folder; exit 9')
  options = ('create', '--preflight', '--type=v4-8', *PLACE, '--', f'--config={CONFIG}')
  for python in ('bin/my-python', './bin/my-python', f'{tmp_path}/bin/my-python'):
    assert pod(*options, PYTHON=python).returncode == 9
    assert (tmp_path / 'folder').read_text().strip() == str(ROOT)
    (tmp_path / 'folder').unlink()


def test_a_preflight_needs_no_images(pod, worker):
  options = ('create', '--preflight', '--type=v4-16', '--stand_in=1281167:1000', *PLACE)
  printed = pod(*options, '--dry-run', '--', f'--config={CONFIG}').stdout.splitlines()
  assert shlex.split(printed[0])[-5:] == [
    '-m',
    'dnt.rehearse',
    f'--config={CONFIG}',
    '--on=v4:2x2x2',
    '--stand_in=1281167:1000',
  ]


def test_a_stale_pid_file_is_no_run(pod, worker, fake):
  """After a restart of its machine, the number of an earlier run may be that of any other process."""
  assert pod('run', *PLACE, *RUN).returncode == 0
  other = subprocess.Popen(['sleep', '60'])
  try:
    for began in (True, False):
      (worker / 'dnt-run' / 'code').unlink()
      (worker / 'dnt-run' / 'pid').write_text(f'{other.pid}\n')
      if not began:
        (worker / 'dnt-run' / 'began').unlink()
      assert ': ended without an exit code' in pod('status', *PLACE).stdout
      stop = pod('stop', *PLACE)
      assert (stop.returncode, stop.stdout) == (1, '')
      assert 'no run' in stop.stderr
      again = pod('resume', *PLACE)
      assert again.returncode == 0, again.stderr
    assert other.poll() is None, 'stop has ended another process'
  finally:
    other.kill()
    other.wait()


def test_before_the_first_run_there_is_none(pod):
  assert ': no run was started: \n' in pod('status', *PLACE).stdout
  assert pod('stop', *PLACE).returncode == 1


def test_the_logs_of_earlier_starts_stay(pod, worker):
  for number in range(3):
    assert pod('run', *PLACE, '--', '--workdir=/mnt/dnt/a', f'--config.seed={number}').returncode == 0
  logs = [(worker / 'dnt-run' / name).read_text() for name in ('log.1', 'log.2', 'log')]
  assert [re.findall(r'seed=(\d)', log) for log in logs] == [['0'], ['1'], ['2']]


def test_fetch_overwrites_nothing(pod, worker, tmp_path):
  (tmp_path / 'runs' / 'a').mkdir(parents=True)
  result = pod('fetch', '/mnt/dnt/a/', *PLACE)
  assert (result.returncode, result.stdout) == (2, '')
  assert re.search('runs/a is there.* LOCAL_DIR', result.stderr)
  assert not (worker / 'gcloud.log').exists()
