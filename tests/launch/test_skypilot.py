"""SkyPilot's own schema comes with sixty packages; the fields are those of docs.skypilot.co, SkyPilot YAML."""

import os
import pathlib
import re
import subprocess

import pytest
import yaml

from dnt.parallel import signals

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = 'configs/digits_resnet20.py'
OPTIONS = {'--name': 'resnet', '--accelerators': 'H100:8', '--nodes': '2', '--bucket': 's3://mine/images'}
FLAGS = [f'--config={CONFIG}', '--workdir=gs://mine/it\'s "a" run', '--config.optim.nesterov']


def arguments(*more, **changed):
  options = {**OPTIONS, **{f'--{name}': value for name, value in changed.items()}}
  return [*(f'{name}={value}' for name, value in options.items() if value is not None), *more]


def task(launch, *more, **changed):
  result = launch('skypilot.sh', *arguments(*more, **changed), '--dry-run', '--', *FLAGS)
  assert result.returncode == 0, result.stderr
  return yaml.safe_load(result.stdout)


def test_the_task_has_the_documented_fields(launch):
  found = task(launch, '--spot', infra='gcp/us-central1')
  run, setup = found.pop('run'), found.pop('setup')
  assert found == {
    'name': 'resnet',
    'workdir': str(ROOT),
    'num_nodes': 2,
    'resources': {
      'accelerators': 'H100:8',
      'infra': 'gcp/us-central1',
      'use_spot': True,
      'job_recovery': {'recover_on_exit_codes': sorted(signals.CODES)},
    },
    'file_mounts': {'/mnt/dnt': {'source': 's3://mine/images', 'mode': 'MOUNT'}},
  }
  assert '"jax[cuda13]" gcsfs h5py huggingface_hub -r requirements.txt' in setup and '-m dnt.main' in run
  assert task(launch)['resources']['use_spot'] is False
  assert 'file_mounts' not in task(launch, bucket=None)


@pytest.mark.parametrize(
  'infra',
  [
    *('gcp', 'aws/us-east-1', 'gcp/*/us-central1-a', 'k8s/gke_sky-dev_us-central1-c_alpha', 'k8s/me@dev.eu.eksctl.io'),
    'k8s/arn:aws:eks:us-east-1:123456789012:cluster/Mine',
  ],
)
def test_the_places_and_buckets_of_the_clouds_are_taken(launch, infra):
  found = task(launch, infra=infra, bucket='gs://my_data/ImageNet/v1')
  assert found['resources']['infra'] == infra
  assert found['file_mounts']['/mnt/dnt']['source'] == 'gs://my_data/ImageNet/v1'


def run_script(script, folder, **environment):
  """Runs the task's run script with a python that prints its platforms and words; returns them."""
  python = folder / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text('#!/bin/bash\nprintf "%s\\n" "$JAX_PLATFORMS" "$@"\n')
  python.chmod(0o755)
  result = subprocess.run(
    ['bash', '-c', script], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr
  return result.stdout.splitlines()


def test_each_node_is_told_where_the_others_are(launch, tmp_path):
  node = {'SKYPILOT_NODE_IPS': '10.0.0.2\n10.0.0.3', 'SKYPILOT_NUM_NODES': '2', 'SKYPILOT_NODE_RANK': '1'}
  assert run_script(task(launch)['run'], tmp_path, **node) == [
    *('cuda,cpu', '-m', 'dnt.main', *FLAGS, '--distributed'),
    *('--coordinator=10.0.0.2:8476', '--num_processes=2', '--process_id=1'),
  ]


@pytest.mark.parametrize(
  ('kind', 'runtime'),
  [('v5litepod-16', 'v2-alpha-tpuv5-lite'), ('v6e-8', 'v2-alpha-tpuv6e'), ('v5p-16', 'v2-alpha-tpuv5')],
)
def test_a_slice_describes_itself(launch, tmp_path, kind, runtime):
  found = task(launch, accelerators=f'tpu-{kind}', nodes=None)
  assert found['num_nodes'] == 1
  assert found['resources']['accelerator_args'] == {'runtime_version': runtime}
  assert 'jax[tpu]' in found['setup']
  assert run_script(found['run'], tmp_path) == ['tpu,cpu', '-m', 'dnt.main', *FLAGS, '--distributed']


def test_launches_the_task_that_dry_run_prints(launch, fake, tmp_path):
  fake('sky', f'printf "%s\\n" "$@" > {tmp_path}/command; cat "${{@: -1}}" > {tmp_path}/task')
  assert launch('skypilot.sh', *arguments(), '--', *FLAGS).returncode == 0
  words = (tmp_path / 'command').read_text().splitlines()
  assert words[:-1] == ['jobs', 'launch', '--yes', '--name=resnet']
  assert not pathlib.Path(words[-1]).exists(), 'a file that was left'
  assert (tmp_path / 'task').read_text() == launch('skypilot.sh', *arguments(), '--dry-run', '--', *FLAGS).stdout


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'accelerators': ''}, "--accelerators='' .*H100:8"),
    ({'accelerators': 'H100'}, "--accelerators='H100' .*H100:8"),
    ({'accelerators': 'H100:8"'}, '--accelerators=.* must be'),
    ({'accelerators': 'tpu-v5litepod-16'}, '--nodes=2 .*tpu-v5litepod-16 disagree.* 4 hosts'),
    ({'accelerators': 'tpu-v5p-20'}, 'v5p-20.* TensorCores'),
    ({'accelerators': 'tpu-v9-8'}, 'tpu-v9-8.* v5litepod'),
    ({'nodes': '0'}, "--nodes .*at least 1.* '0'"),
    ({'bucket': 'mine'}, "--bucket='mine' .*gs://"),
    ({'bucket': 'gs://a"b'}, '--bucket=.* must be'),
    ({'infra': "gcp/it's"}, '--infra=.* must be'),
    ({'infra': 'k8s/a"b'}, '--infra=.* must be'),
  ],
)
def test_bad_options_are_refused(launch, changed, message):
  result = launch('skypilot.sh', *arguments(**changed), '--dry-run', '--', *FLAGS)
  assert (result.returncode, result.stdout) == (2, '')
  assert re.search(message, result.stderr)


@pytest.mark.parametrize('workdir', ['/tmp/a', '/mnt/dnt/a', 's3://mine/a', 'gs://mine'])
def test_a_workdir_that_is_in_no_bucket_of_google_is_refused(launch, workdir):
  result = launch('skypilot.sh', *arguments(), '--dry-run', '--', f'--workdir={workdir}')
  assert (result.returncode, result.stdout) == (2, '')
  assert re.search(f"--workdir='{workdir}' must be gs://BUCKET/PATH.* --bucket .*data", result.stderr)
