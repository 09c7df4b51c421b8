import pathlib
import re

import pytest
import yaml

from dnt.parallel import signals

CONFIG = str(pathlib.Path(__file__).parents[2] / 'configs' / 'digits_resnet20.py')
OPTIONS = {
  '--name': 'resnet',
  '--image': 'europe-docker.pkg.dev/p/r/dnt:1',
  '--claim': 'filestore',
  '--accelerator': 'tpu-v5-lite-podslice',
  '--topology': '4x4',
  '--hosts': '4',
}


def arguments(**changed):
  options = {**OPTIONS, **{f'--{name}': value for name, value in changed.items()}}
  return [f'{name}={value}' for name, value in options.items()]


def test_dry_run_prints_the_jobset_that_is_applied(launch, fake, tmp_path):
  flags = [f'--config={CONFIG}', r'--workdir=/mnt/dnt/a "b" \c']
  printed = launch('gke_jobset.sh', *arguments(), '--dry-run', '--', *flags).stdout
  jobset = yaml.safe_load(printed)
  assert (jobset['kind'], jobset['metadata']['name']) == ('JobSet', 'resnet')
  job = jobset['spec']['replicatedJobs'][0]['template']['spec']
  assert job['parallelism'] == job['completions'] == 4
  assert job['podFailurePolicy']['rules'] == [
    {'action': 'Ignore', 'onExitCodes': {'containerName': 'dnt', 'operator': 'In', 'values': sorted(signals.CODES)}}
  ]
  pod = job['template']['spec']
  assert pod['restartPolicy'] == 'Never', 'or there may be no podFailurePolicy'
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '4x4',
  }
  (container,) = pod['containers']
  assert container['image'] == OPTIONS['--image']
  assert container['command'] == ['python', '-m', 'dnt.main', *flags, '--distributed']
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  assert pod['volumes'][0]['persistentVolumeClaim']['claimName'] == 'filestore'
  fake('kubectl', f'echo "$@" > {tmp_path}/command; cat > {tmp_path}/jobset')
  assert launch('gke_jobset.sh', *arguments(), '--', *flags).returncode == 0
  assert (tmp_path / 'command').read_text() == 'apply -f -\n'
  assert (tmp_path / 'jobset').read_text() == printed


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'name': 'My_run'}, "--name='My_run' .*lower-case"),
    ({'image': ''}, '--image, --claim and --accelerator'),
    ({'topology': '16'}, "--topology='16' .*4x4"),
    ({'hosts': ''}, "--hosts .*at least 1.* ''"),
  ],
)
def test_bad_options_are_refused(launch, changed, message):
  result = launch('gke_jobset.sh', *arguments(**changed), '--dry-run', '--', '--workdir=/mnt/dnt/a')
  assert (result.returncode, result.stdout) == (2, '')
  assert re.search(message, result.stderr)


def test_a_workdir_outside_the_claim_is_refused(launch):
  result = launch('gke_jobset.sh', *arguments(), '--dry-run', '--', '--workdir=/tmp/a')
  assert result.returncode == 2
  assert re.search("--workdir='/tmp/a' .*/mnt/dnt", result.stderr)
