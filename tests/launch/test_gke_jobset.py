import re

import pytest
import yaml
from kubeflow_trainer_api.models import jobset_v1alpha2_job_set as schema  # as JobSet and Kubernetes publish them

from dnt.parallel import signals

CONFIG = 'configs/digits_resnet20.py'
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
  return [f'{name}={value}' for name, value in options.items() if value is not None]


def test_dry_run_prints_the_jobset_that_is_applied(launch, fake, tmp_path):
  flags = [f'--config={CONFIG}', r'--workdir=/mnt/dnt/a "b" \c']
  printed = launch('gke_jobset.sh', *arguments(), '--dry-run', '--', *flags).stdout
  jobset = yaml.safe_load(printed)
  assert (jobset['kind'], jobset['metadata']['name']) == ('JobSet', 'resnet')
  model = schema.JobsetV1alpha2JobSet.from_dict(jobset)
  assert model.to_dict() == jobset, 'the model leaves out what the published schema does not know'
  job = jobset['spec']['replicatedJobs'][0]['template']['spec']
  assert job['parallelism'] == job['completions'] == 4
  assert job['podFailurePolicy']['rules'] == [
    {'action': action, 'onExitCodes': {'containerName': 'dnt', 'operator': 'In', 'values': values}}
    for action, values in (('Ignore', sorted(signals.CODES)), ('FailJob', [2]))
  ]
  # A job fails for this reason by a FailJob alone: that of a lost process, 1, starts the JobSet again.
  assert jobset['spec']['failurePolicy'] == {
    'maxRestarts': 10,
    'rules': [{'name': 'badInput', 'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}],
  }
  pod = job['template']['spec']
  assert pod['restartPolicy'] == 'Never', 'or there may be no podFailurePolicy'
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '4x4',
  }
  (container,) = pod['containers']
  assert container['image'] == OPTIONS['--image']
  assert container['command'] == ['python', '-m', 'dnt.main', *flags, '--distributed']
  assert {'name': 'JAX_PLATFORMS', 'value': 'tpu,cpu'} in container['env']
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
    ({'image': ''}, '--image and --accelerator'),
    ({'image': 'a" b'}, "--image='a. b' must be"),
    ({'image': "it's"}, '--image=.* must be'),
    ({'claim': 'my"claim'}, '--claim=.* must be'),
    ({'claim': 'a: b'}, '--claim=.* must be'),
    ({'accelerator': 'tpu-v5e-slice'}, "--accelerator='tpu-v5e-slice' .*tpu-v5-lite-podslice"),
    ({'accelerator': 'tpu-v6e-slice"'}, '--accelerator=.* must be'),
    ({'topology': '16'}, "--topology='16' .*4x4"),
    ({'topology': '2x2x4'}, "--topology='2x2x4' .*tpu-v5-lite-podslice has.* 16x16"),
    ({'accelerator': 'tpu-v5p-slice'}, "--topology='4x4' .*tpu-v5p-slice has.* 4x4x8"),
    ({'hosts': '16'}, '--hosts=16 and --topology=4x4 disagree: 16 chips.*--hosts=4'),
    ({'hosts': '2', 'chips': '8'}, '--chips=8: .* 4x4 has 4'),
    ({'topology': '2x4', 'hosts': '2', 'chips': '8'}, '--hosts=2 and --topology=2x4 disagree.*--hosts=1'),
    ({'topology': '16x16', 'hosts': '32'}, 'disagree: 256 chips, .*--hosts=64'),
    ({'accelerator': 'tpu-v5p-slice', 'topology': '2x2x2', 'hosts': '4'}, 'disagree: 8 chips, .*--hosts=2'),
    ({'chips': '3'}, '--chips=3: .* has 4'),
    ({'hosts': ''}, "--hosts .*at least 1.* ''"),
  ],
)
def test_bad_options_are_refused(launch, changed, message):
  result = launch('gke_jobset.sh', *arguments(**changed), '--dry-run', '--', '--workdir=/mnt/dnt/a')
  assert (result.returncode, result.stdout) == (2, '')
  assert re.search(message, result.stderr)


def test_a_workdir_in_a_bucket_needs_no_claim(launch):
  result = launch('gke_jobset.sh', *arguments(claim=None), '--dry-run', '--', '--workdir=gs://bucket/run')
  jobset = yaml.safe_load(result.stdout)
  assert schema.JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset
  pod = jobset['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
  assert 'volumes' not in pod and 'volumeMounts' not in pod['containers'][0]
  result = launch('gke_jobset.sh', *arguments(claim=None), '--dry-run', '--', '--workdir=/mnt/dnt/a')
  assert result.returncode == 2 and '--claim' in result.stderr


def test_a_workdir_outside_the_claim_is_refused(launch):
  result = launch('gke_jobset.sh', *arguments(), '--dry-run', '--', '--workdir=/tmp/a')
  assert result.returncode == 2
  assert re.search("--workdir='/tmp/a' .*/mnt/dnt", result.stderr)


@pytest.mark.parametrize(
  ('accelerator', 'topology', 'chips', 'hosts', 'each'),
  [
    ('tpu-v5-lite-podslice', '16x16', None, 64, 4),
    ('tpu-v5-lite-podslice', '2x4', None, 2, 4),
    ('tpu-v5-lite-podslice', '2x4', 8, 1, 8),
    ('tpu-v6e-slice', '1x1', None, 1, 1),
    ('tpu-v4-podslice', '2x2x4', None, 4, 4),
    ('tpu-v5p-slice', '4x4x8', None, 32, 4),
  ],
)
def test_the_topology_says_how_many_hosts(launch, accelerator, topology, chips, hosts, each):
  options = arguments(accelerator=accelerator, topology=topology, hosts=None, chips=chips)
  printed = launch('gke_jobset.sh', *options, '--dry-run', '--', '--workdir=/mnt/dnt/a').stdout
  job = yaml.safe_load(printed)['spec']['replicatedJobs'][0]['template']['spec']
  assert job['parallelism'] == job['completions'] == hosts
  assert job['template']['spec']['containers'][0]['resources']['limits'] == {'google.com/tpu': each}


def test_kubernetes_changes_no_flag(launch):
  """Kubernetes reads $$ as $, and replaces $(NAME) by a variable."""
  workdir = '--workdir=/mnt/dnt/$(HOSTNAME)$$a$b'
  printed = launch('gke_jobset.sh', *arguments(), '--dry-run', '--', workdir).stdout
  job = yaml.safe_load(printed)['spec']['replicatedJobs'][0]['template']['spec']
  word = job['template']['spec']['containers'][0]['command'][3]
  expanded = re.sub(r'\$\$|\$\((\w+)\)', lambda found: '$' if found[0] == '$$' else 'replaced', word)
  assert expanded == workdir
