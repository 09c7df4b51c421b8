import http.server
import threading

import pytest

from dnt import errors
from dnt.parallel import clusters

SLURM = {
  'SLURM_JOB_ID': '5000',
  'SLURM_STEP_NODELIST': 'node[007-009,012]',
  'SLURM_STEP_NUM_TASKS': '4',
  'SLURM_STEP_NUM_NODES': '4',
  'SLURM_PROCID': '2',
  'SLURM_LOCALID': '0',
}


def test_flags_win_and_are_checked():
  assert clusters.from_flags('10.0.0.1:1234', 4, 3) == clusters.Cluster('10.0.0.1:1234', 4, 3)
  with pytest.raises(errors.InputError, match='missing: --process_id'):
    clusters.from_flags('10.0.0.1:1234', 4, None)
  with pytest.raises(errors.InputError, match=r'--process_id=4 .*0 to 3'):
    clusters.from_flags('10.0.0.1:1234', 4, 4)
  with pytest.raises(errors.InputError, match=r'--num_processes=0 .*at least 1'):
    clusters.from_flags('10.0.0.1:1234', 0, 0)
  for bad in ('10.0.0.1', ':12', 'host:0', 'host:70000', 'http://host:12'):
    with pytest.raises(errors.InputError, match=f'{bad}.* host:port'):
      clusters.from_flags(bad, 2, 0)


def test_address_takes_names_and_both_kinds_of_ip():
  assert clusters.address('node7:8482') == ('node7', 8482)
  assert clusters.address('10.0.0.1:1') == ('10.0.0.1', 1)
  assert clusters.address('[fe80::1]:65535') == ('fe80::1', 65535)


@pytest.mark.parametrize(
  ('nodes', 'first'),
  [
    ('node7', 'node7'),
    ('node7,other1', 'node7'),
    ('node[007-009,012]', 'node007'),
    ('node[3,5]', 'node3'),
    ('gpu-a[12-14],cpu1', 'gpu-a12'),
  ],
)
def test_slurm_step_is_read_from_its_variables(nodes, first):
  cluster = clusters.detect({**SLURM, 'SLURM_STEP_NODELIST': nodes})
  assert cluster == clusters.Cluster(f'{first}:{61440 + 5000 - 4096}', 4, 2)


def test_slurm_tasks_share_out_the_gpus_of_their_node():
  whole_node = {**SLURM, 'CUDA_VISIBLE_DEVICES': '0,1,2,3'}
  assert clusters.detect(whole_node).local_device_ids is None
  one_each = {**whole_node, 'SLURM_STEP_NUM_TASKS': '16', 'SLURM_PROCID': '6', 'SLURM_LOCALID': '2'}
  assert clusters.detect(one_each).local_device_ids == [2]
  assert clusters.detect({**one_each, 'CUDA_VISIBLE_DEVICES': '2'}).local_device_ids is None


def test_gke_slice_is_read_from_its_variables():
  cluster = clusters.detect({'TPU_WORKER_ID': '1', 'TPU_WORKER_HOSTNAMES': 'a-0.job,a-1.job'})
  assert cluster == clusters.Cluster('a-0.job:8482', 2, 1, None, ('a-0.job', 'a-1.job'))


def test_several_slices_are_numbered_slice_by_slice():
  slices = {'MEGASCALE_NUM_SLICES': '3', 'MEGASCALE_SLICE_ID': '2', 'MEGASCALE_COORDINATOR_ADDRESS': 'a-0.job:8081'}
  cluster = clusters.detect({'TPU_WORKER_ID': '1', 'TPU_WORKER_HOSTNAMES': 'c-0.job,c-1.job', **slices})
  assert cluster == clusters.Cluster('a-0.job:8482', 6, 5)


@pytest.fixture
def metadata_server():
  """A metadata server with the attributes a test puts into the dict; the address is under ''."""
  attributes = {}

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      value = attributes.get(self.path.rpartition('/')[2])
      self.send_response(404 if value is None or self.headers['Metadata-Flavor'] != 'Google' else 200)
      self.end_headers()
      self.wfile.write((value or '').encode())

    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  attributes[''] = f'127.0.0.1:{server.server_port}'
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield attributes
  server.shutdown()
  server.server_close()


@pytest.mark.parametrize('endpoints', ['10.0.0.5,10.0.0.6', 'unknown:unknown:10.0.0.5,unknown:unknown:10.0.0.6'])
def test_cloud_tpu_vm_asks_the_metadata_server(metadata_server, endpoints):
  metadata_server.update({'agent-worker-number': '1', 'worker-network-endpoints': endpoints})
  metadata_server['tpu-env'] = "ACCELERATOR_TYPE: 'v4-16'\nWORKER_ID: '1'\n"
  cluster = clusters.detect({'GCE_METADATA_HOST': metadata_server['']})
  assert cluster == clusters.Cluster('10.0.0.5:8482', 2, 1, None, ('10.0.0.5', '10.0.0.6'))


def test_cloud_tpu_vm_of_several_slices(metadata_server):
  metadata_server.update({'agent-worker-number': '0', 'worker-network-endpoints': '10.0.0.7,10.0.0.8'})
  metadata_server['tpu-env'] = (
    "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\nMEGASCALE_COORDINATOR_ADDRESS: '10.0.0.5:8080'\n"
  )
  cluster = clusters.detect({'GCE_METADATA_HOST': metadata_server['']})
  assert cluster == clusters.Cluster('10.0.0.5:8482', 4, 2)


def test_no_cluster_says_which_flags_to_give(metadata_server, coordinator):
  for environ in ({'GCE_METADATA_HOST': metadata_server['']}, {'GCE_METADATA_HOST': coordinator}):
    with pytest.raises(errors.InputError, match='no cluster .*--coordinator=host:port --num_processes=N'):
      clusters.detect(environ)
