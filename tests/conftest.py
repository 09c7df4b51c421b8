"""CPU devices, strict ranks and one compilation cache for every test and every process a test starts."""

import contextlib
import ctypes
import fcntl
import functools
import gc
import importlib.util
import io
import itertools
import json
import logging
import os
import pathlib
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
from importlib import metadata
from typing import NamedTuple

import pytest

# Under nohup and behind '&' in a script signals are ignored, and all processes started from there would ignore them.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN or 'PYTEST_XDIST_WORKER' in os.environ:
  # Tests still go on without their terminal (workers end with their controller); no process inherits a handler.
  signal.signal(signal.SIGHUP, lambda *_: None)
_EIGHT = '--xla_force_host_platform_device_count=8'
# Tests compile quickly, but for those with the fixture `optimized`: without most of XLA's optimizations, and by XLA's
# older emitters, which take a third of the processor time (0.6 instead of 1.9 s for the train step of a ResNet-8).
# Versions of jax after 0.10.2 have these emitters no more.
_OLDER_EMITTERS = '--xla_cpu_use_fusion_emitters=false' if metadata.version('jax') == '0.10.2' else ''
OWN_XLA_FLAGS = os.environ.get('XLA_FLAGS', '')
for flag in (_EIGHT, _OLDER_EMITTERS):  # workers get those of their controller
  OWN_XLA_FLAGS = OWN_XLA_FLAGS.replace(flag, '').strip()
if 'DNT_TEST_PLATFORM' in os.environ:  # elsewhere than on CPU, where not all tests hold; empty: what jax finds
  os.environ['JAX_PLATFORMS'] = os.environ['DNT_TEST_PLATFORM']
else:
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = f'{OWN_XLA_FLAGS} {_EIGHT} {_OLDER_EMITTERS}'.strip()
  os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
# Kept between runs; XLA writes there what it compiled for this version and these flags.
CACHE = pathlib.Path(__file__).parents[1] / '.pytest_cache' / f'xla-{metadata.version("jax")}'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(CACHE))
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'

pytest_plugins = ['tests.references.plugin', 'tests.networks']
CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
_PEAKS = {}  # MiB that each worker held at most
_KEPT = {}  # bytes that this worker held when its programs were freed last


def pytest_sessionfinish(session):
  """Tells the controller how much memory a worker held."""
  if hasattr(session.config, 'workeroutput'):
    session.config.workeroutput['peak'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  if 'peak' in getattr(node, 'workeroutput', {}):
    _PEAKS[node.gateway.id] = node.workeroutput['peak']


def pytest_terminal_summary(terminalreporter):
  if _PEAKS:
    peaks = ', '.join(f'{worker} {peak}' for worker, peak in sorted(_PEAKS.items()))
    terminalreporter.write_line(f'peak memory of the workers in MiB: {peaks}')


def _memory():
  """Bytes of memory that this process holds; 0 where the system does not say."""
  statistics = pathlib.Path('/proc/self/statm')
  return int(statistics.read_text().split()[1]) * resource.getpagesize() if statistics.exists() else 0


@pytest.fixture(autouse=True)
def release_programs():
  """Frees what was compiled once it is near a GB: jax keeps every program for as long as a worker lives.

  It takes half a second, so it is not done again before the worker has grown: what it holds besides grows too.
  """
  yield
  if _memory() < max(0.75 * 2**30, _KEPT.get('bytes', 0) + 0.2 * 2**30):
    return
  if hasattr(sys.modules.get('jax'), 'clear_caches'):  # a test may have put something else in its place
    sys.modules['jax'].clear_caches()
  gc.collect()
  if platform.libc_ver()[0] == 'glibc':
    ctypes.CDLL(None).malloc_trim(0)  # gives back what is free between blocks that are not
  _KEPT['bytes'] = _memory()


@pytest.fixture(autouse=True)
def own_log_level():
  """Programs that run in this process set the level of the root logger, through absl: only until a test ends."""
  level = logging.getLogger().level
  yield
  logging.getLogger().setLevel(level)


@pytest.fixture(autouse=True)
def untuned(monkeypatch):
  """Programs that run in this process leave malloc as it is: it would keep the memory of all later tests."""
  monkeypatch.setattr('dnt.parallel.cpu.allocator.tune', lambda: None)


@pytest.fixture
def load_config():
  """Reads a config file: the config as a fresh object."""

  def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()

  return load


@pytest.fixture
def tiny():
  """A config that trains in about a second: an MLP on 64 synthetic 8x8 images; change it as a test needs.

  It trains on all images, and ranks by the test split, which is enough to see that something is ranked.
  """
  from dnt import config as schema

  config = schema.default()
  config.data.source = 'synthetic'
  config.data.synthetic_examples = 64
  config.data.image_size = 8
  config.model.name = 'mlp'
  config.model.depth = 3
  config.model.width = 16
  config.optim.learning_rate = 0.05
  config.train.batch_size = 16
  config.train.steps = 6
  config.train.log_every = '2'
  config.eval.splits = ('test',)
  config.eval.batch_size = 16
  config.eval.every = '3'
  config.checkpoint.best_metric = 'test/accuracy'
  config.checkpoint.every = '3'
  return config


class Trained(NamedTuple):
  """The run that tests share, and how the program that made it ended."""

  workdir: pathlib.Path
  flags: tuple[str, ...]
  code: int
  output: str
  problems: str


TRAINED = (
  '--config.data.source=synthetic',
  '--config.data.synthetic_examples=64',
  '--config.data.image_size=8',
  '--config.data.crop_padding=1',
  '--config.model.depth=8',
  '--config.ema.decay=0.5',
  '--config.train.batch_size=16',
  '--config.train.steps=4',
  '--config.train.log_every=2',
  "--config.eval.splits=('test',)",
  '--config.eval.batch_size=16',
  '--config.checkpoint.best_metric=test/accuracy',
)


def _train(workdir):
  """Runs `python -m dnt.main` in this process, on one device."""
  import jax

  from dnt import cli, main

  devices, level = jax.devices()[:1], logging.getLogger().level
  output, problems = io.StringIO(), io.StringIO()
  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output), contextlib.redirect_stderr(problems):
    patch.setattr(jax, 'devices', lambda: devices)
    patch.setattr('dnt.parallel.cpu.allocator.tune', lambda: None)
    patch.setattr(sys, 'argv', ['dnt.main', f'--workdir={workdir}', *TRAINED])
    with pytest.raises(SystemExit) as stopped:
      cli.run(main.PROGRAM)
  logging.getLogger().setLevel(level)
  return stopped.value.code or 0, output.getvalue(), problems.getvalue()


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
  """One run for all tests and workers: a ResNet-8 with an average, after 4 steps on 64 synthetic 8x8 images.

  No test may write into it: `trained_copy` is for those that do.
  """
  folder = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    folder = folder.parent  # of all workers
  workdir, ended = folder / 'trained', folder / 'trained.json'
  with (folder / 'trained.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not ended.exists():
      ended.write_text(json.dumps(_train(workdir)))

  def files():
    stats = ((path, path.stat()) for path in workdir.rglob('*'))
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats}

  before = files()
  yield Trained(workdir, TRAINED, *json.loads(ended.read_text()))
  assert files() == before, 'a test has changed the run that all share'


@pytest.fixture
def trained_copy(trained, tmp_path):
  """The same with a copy of its workdir, which the test may change."""
  return trained._replace(workdir=pathlib.Path(shutil.copytree(trained.workdir, tmp_path / 'run')))


@pytest.fixture
def rank():
  """`rank(workdir, 'val/accuracy', {2: 0.9})`: checkpoints of these steps get these values of the metric."""
  from dnt.checkpoints import format

  def write(workdir, metric, values):
    for step, value in values.items():
      file = workdir / 'checkpoints' / str(step) / 'meta' / format.META_FILE
      envelope = {**json.loads(file.read_text()), 'metrics': {metric: value}}
      del envelope['sha256']
      file.write_text(json.dumps({**envelope, 'sha256': format._sha256(envelope)}))

  return write


@pytest.fixture
def two_checkpoints(trained_copy, rank):
  """The workdir of a run whose checkpoint of step 2 is the best."""
  shutil.copytree(trained_copy.workdir / 'checkpoints' / '4', trained_copy.workdir / 'checkpoints' / '2')
  rank(trained_copy.workdir, 'test_ema/accuracy', {2: 0.9, 4: 0.1})
  return trained_copy.workdir


@pytest.fixture
def saved(tmp_path):
  """Saves the first state of a run as the loop does, its average halved; returns experiment, state and data."""
  import jax

  from dnt import checkpoints, files
  from dnt.models import layouts
  from dnt.parallel import mesh as mesh_lib
  from dnt.training import datasets, experiment, initialize, open_options, record

  def save(config, workdir=tmp_path / 'run', step=7):
    data = datasets.load(config, config.eval.splits)
    run = experiment.make(open_options.resolve(config, data), data.spec)
    own = checkpoints.Checkpoints(workdir, config.checkpoint)
    mesh = mesh_lib.make_mesh(config.mesh)
    state = initialize.make_state(run, mesh, initialize.find(run, mesh, own, data.weights))
    state = state.replace(step=state.step + step, ema=jax.tree.map(lambda leaf: 0.5 * leaf, state.ema))
    files.write_json(workdir / 'config.json', run.config.to_dict())
    with record.Record(run, workdir, 0, {}, record.Clock(0.0)) as rec:
      own.save(step, layouts.to_unrolled(state, layouts.scanned_rows(state.params)), rec.history())
    own.close()
    return run, state, data

  return save


@pytest.fixture
def labelled_folders(tmp_path):
  """`labelled_folders('test/class3', ...)`: a folder with two images in each of these folders."""
  import numpy as np
  from PIL import Image

  draw = np.random.default_rng(1)

  def make(*names):
    for name in names:
      (tmp_path / 'labelled' / name).mkdir(parents=True)
      for index in range(2):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / 'labelled' / name / f'{index}.png')
    return tmp_path / 'labelled'

  return make


@pytest.fixture
def change_splits(monkeypatch):
  """`change_splits(change)`: every split that is read from now on is `change(split)`."""
  from dnt.data import sources
  from dnt.data.sources import registry

  def install(change):
    read = registry.read
    for module in (sources, registry):
      monkeypatch.setattr(module, 'read', lambda *args: change(read(*args)))

  return install


OWN_NETWORK = """
import flax.linen as nn

class Net(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(6, (3, 3), (2, 2), name='body')(x)
    return nn.Dense(self.num_classes, name='answer')(nn.relu(x).mean((1, 2)))
"""


WIDE_NETWORK = """
import flax.linen as nn

class Net(nn.Module):
  num_classes: int
  width: int = 4

  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(self.num_classes)(nn.relu(nn.Dense(self.width)(x.reshape(x.shape[0], -1))))
"""


@pytest.fixture
def wide_network(tiny, tmp_path, monkeypatch):
  """A config whose network is a user's own that has an option, `width`."""
  (tmp_path / 'wide_network.py').write_text(WIDE_NETWORK)
  monkeypatch.syspath_prepend(tmp_path)
  tiny.model.update({'name': 'wide_network:Net', 'depth': None, 'width': None})
  return tiny


@pytest.fixture
def own_network(tiny, tmp_path, monkeypatch):
  """A config whose network is a user's own, one convolution; processes that the test starts find it too."""
  (tmp_path / 'own_network.py').write_text(OWN_NETWORK)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  tiny.model.update({'name': 'own_network:Net', 'depth': None, 'width': None})
  return tiny


@pytest.fixture
def begin():
  """The experiment of a config, its first state and a batch of its training images, by position."""
  import jax.numpy as jnp

  from dnt.parallel import compile as compile_lib
  from dnt.training import datasets, experiment, open_options

  def make(config):
    data = datasets.load(config, ())
    run = experiment.make(open_options.resolve(config, data), data.spec)
    size = config.train.batch_size
    batch = {
      'image': jnp.asarray(data.train.images[:size]),
      'label': jnp.asarray(data.train.labels[:size]),
      'epoch': jnp.zeros(size, jnp.int32),
      'position': jnp.arange(size, dtype=jnp.int32),
    }
    return run, compile_lib.eagerly(run.make_state)(run.init_variables()), batch

  return make


@pytest.fixture
def all_devices():
  """Runs on all devices, eight on CPU. Other tests run on one, for which programs compile faster."""


@pytest.fixture
def eight_devices(all_devices):
  """Runs on eight devices, for tests of what several change; elsewhere than on CPU there may be fewer."""
  import jax

  if len(jax.devices()) < 8:
    pytest.skip(f'it needs eight devices, and there are {len(jax.devices())}')


@pytest.fixture(autouse=True)
def one_device(request, monkeypatch):
  if 'all_devices' not in request.fixturenames:
    import jax

    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, 'devices', lambda: devices)


@pytest.fixture
def optimized(monkeypatch):
  """Compiles as users do: for tests of compilation, and of bits that different programs of one step have in common."""
  import jax

  from dnt.parallel.cpu import options

  if _OLDER_EMITTERS:
    find = options.find
    monkeypatch.setattr(options, 'find', lambda: {'xla_cpu_use_fusion_emitters': True, **(find() or {})})
  monkeypatch.setenv('XLA_FLAGS', f'{OWN_XLA_FLAGS} {_EIGHT}'.strip())  # of processes that the test starts
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '0')
  usual = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', usual)


@pytest.fixture
def undrawn(monkeypatch):
  """Figures are not drawn, nor are those of a run made, which takes longer than a tiny run: for tests of none."""
  from dnt.reporting import plots

  for name in ('curves', 'telemetry', 'confusion'):
    monkeypatch.setattr(plots, name, lambda *_: None)
  monkeypatch.setattr(plots, 'png', lambda figure: b'not drawn')


@pytest.fixture
def console(capsys):
  """Shows what dnt logs on the standard output, as its programs do; returns capsys."""
  from dnt.reporting import terminal

  with terminal.console():
    yield capsys


@pytest.fixture
def slow_count(monkeypatch):
  """`slow_count(seconds)`: lets this time pass between two looks at the clock by what counts images."""
  from dnt.reporting import progress

  count = progress.Count

  def set_pace(seconds):
    ticks = itertools.count()
    monkeypatch.setattr(progress, 'Count', functools.partial(count, clock=lambda: seconds * next(ticks)))

  return set_pace


@pytest.fixture
def call_program(monkeypatch, capsys):
  """Runs `python -m dnt.<name> <arguments>` in this process: (exit code, standard output, standard error)."""
  from dnt import cli

  def call(name, *arguments):
    monkeypatch.setattr(sys, 'argv', [f'dnt.{name}', *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
      cli.run(importlib.import_module(f'dnt.{name}').PROGRAM)
    return stopped.value.code or 0, *capsys.readouterr()

  return call


@pytest.fixture
def run_here(call_program):
  """The same: (exit code, all output)."""

  def run(name, *arguments):
    code, output, problems = call_program(name, *arguments)
    return code, output + problems

  return run


@pytest.fixture
def program(call_program):
  """Runs `python -m dnt.main` in this process, as `call_program` does."""
  return functools.partial(call_program, 'main')


@pytest.fixture
def refused(call_program):
  """Runs `dnt.main` or another program, which must refuse its input with code 2 and one line; returns that line."""

  def run(*arguments, name='main'):
    code, _, err = call_program(name, *arguments)
    assert code == 2, err
    lines = [line for line in err.strip().splitlines() if line]
    assert len(lines) == 1, err
    assert lines[0].startswith('error: ')
    assert 'Traceback' not in err
    return lines[0]

  return run


@pytest.fixture(scope='session')
def records():
  """Lines of a record: training, a test split with one loss that is not a number, and its average."""
  lines = []
  for step in range(50, 1001, 50):
    train = {'train/loss': 2 / step, 'train/accuracy': 1 - 1 / step, 'train/learning_rate': 0.1}
    lines.append({'step': step, 'epoch': step / 100, **train, 'images_per_second': 900.0})
    if step % 200 == 0:
      test = {'test/loss': None if step == 400 else 0.5, 'test/accuracy': 0.9}
      lines.append({'step': step, 'epoch': step / 100, **test, 'test_ema/loss': 0.4, 'test_ema/accuracy': 0.91})
  return lines


@pytest.fixture(scope='session')
def events():
  """Reads TensorBoard's event files: (step, tag, value) of each scalar, and the steps at which a session started."""

  def read(workdir):
    from tensorboardX.proto import event_pb2

    found, starts = [], []
    for path in sorted(workdir.glob('events.out.tfevents.*')):
      data, at = path.read_bytes(), 0
      while at < len(data):  # with the event format's own framing
        length = int.from_bytes(data[at : at + 8], 'little')
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        if event.session_log.status:
          starts.append(event.step)
    return found, starts

  return read


CONFIG_FILE = """
from dnt import config as schema

def get_config():
  config = schema.default()
  config.data.source = 'synthetic'
  config.data.synthetic_examples = 80
  config.data.image_size = 8
  config.data.augment = 'pad_crop_flip'
  config.data.crop_padding = 1
  config.data.workers = 1
  config.model.name = 'resnet'
  config.model.depth = 8
  config.ema.decay = 0.9
  config.train.batch_size = 32
  config.train.log_every = '1'
  config.eval.splits = ('test',)
  config.eval.batch_size = 32
{lines}
  return config
"""


@pytest.fixture
def config_file(tmp_path):
  """Writes a config for runs in processes of their own, a small ResNet whose every step is logged; returns its path."""

  def write(name, options):
    path = tmp_path / f'{name}.py'
    lines = '\n'.join(f'  config.{key} = {value!r}' for key, value in options.items())
    path.write_text(CONFIG_FILE.format(lines=lines))
    return path

  return write


@pytest.fixture
def start():
  """Starts a command in the root of the checkout, with one device; it compiles as tests do, or as users do."""

  processes = []

  def popen(command, optimized=False):
    flags = OWN_XLA_FLAGS if optimized else f'{OWN_XLA_FLAGS} {_OLDER_EMITTERS}'.strip()
    environment = {**os.environ, 'XLA_FLAGS': flags, 'PYTHON': sys.executable}
    environment['JAX_DISABLE_MOST_OPTIMIZATIONS'] = str(int(not optimized))
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
    processes.append(subprocess.Popen(command, cwd=CONFIGS.parent, env=environment, text=True, **pipes))
    return processes[-1]

  yield popen
  for process in processes:
    with process:
      process.kill()


@pytest.fixture
def coordinator():
  """`127.0.0.1:<port>`, with a port that the system gives to nobody else while the test runs.

  A socket that does not listen holds it. Servers that set SO_REUSEADDR, as those of Python and gRPC do, can bind it.
  """
  with socket.socket() as holder:
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(('127.0.0.1', 0))
    yield f'127.0.0.1:{holder.getsockname()[1]}'


@pytest.fixture
def outcomes(start, coordinator):
  """Starts two processes of one run, which must refuse to run, with the flags of each; returns the error of each."""

  def run(*flags):
    place = ['--distributed', f'--coordinator={coordinator}', '--num_processes=2']
    command = [sys.executable, '-m', 'dnt.main']
    processes = [start([*command, *own, *place, f'--process_id={i}']) for i, own in enumerate(flags)]
    found = [(process.communicate(timeout=240)[0], process.returncode) for process in processes]
    assert [code for _, code in found] == [2, 2], found
    return [[line for line in output.splitlines() if line.startswith('error: ')][0] for output, _ in found]

  return run


@pytest.fixture
def run_program(start):
  """Runs `python -m <module> <arguments>` to its end: (exit code, output)."""

  def run(module, *arguments, timeout=240):
    process = start([sys.executable, '-m', module, *map(str, arguments)])
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output

  return run


@pytest.fixture
def finish():
  """Waits for a process that must end with a code, by default well; returns its output."""

  def wait(process, code=0):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output

  return wait


@pytest.fixture(scope='session')
def bucket_server():
  """A server of buckets for all tests of a worker, which this process finds, and those that it starts."""
  from tests import gcs

  with gcs.Server() as server, pytest.MonkeyPatch.context() as patch:
    for name, value in server.environment().items():
      patch.setenv(name, value)
    pytest.importorskip('gcsfs')
    yield server


@pytest.fixture
def bucket(bucket_server, monkeypatch, tmp_path):
  """The server, whose bucket `gs://test-bucket` is empty; mirrors are in the folder `mirrors`."""
  bucket_server.objects.clear()
  bucket_server.failures = 0
  folder = tmp_path / 'mirrors'
  folder.mkdir()
  monkeypatch.setenv('TMPDIR', str(folder))
  monkeypatch.setattr('tempfile.tempdir', str(folder))
  return bucket_server
