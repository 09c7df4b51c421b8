"""Builds the device mesh and the shardings of batches and parameters; no other module makes a NamedSharding.

The axes are `data` and `fsdp`. A batch is split over both. Parameters are replicated over `data`; each large leaf is
split over `fsdp` along one axis, by size or as `config.sharding` says. A step gathers the parameters to use them, and
splits their gradients again (`gather_for_use`), so that all it computes is split by examples. The same program runs on
any mesh.
"""

import collections
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from dnt import errors, trees
from dnt.config import typed

Tree = Any

_log = logging.getLogger(__name__)
DATA, FSDP = 'data', 'fsdp'
# Leaves with fewer numbers stay whole on every device: the latency of gathering them outweighs the saved memory.
SMALLEST_SPLIT_LEAF = 2**14


def make_mesh(config: typed.Mesh, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Makes the mesh over all devices of all processes; each parameter is split over `fsdp` devices.

  Devices are in the order of their slices and processes (jax.make_mesh may reorder them on TPU), so that the rows of a
  batch on one process are contiguous. A slice is what fast links connect: of TPUs, or a node of GPUs. `data` is the
  outer axis, so only gradients pass through the slower network between slices; a line is logged if `fsdp` spans them.

  Args:
    config: the `mesh` section of the config.
    devices: others than all of jax's, such as those of a topology that is not here.

  Raises:
    errors.InputError: `fsdp` does not divide the number of devices.
  """
  chosen = jax.devices() if devices is None else devices
  slices = collections.Counter(_slice(device) for device in chosen)
  devices = sorted(chosen, key=lambda device: (_slice(device), device.process_index, device.id))
  count, fsdp = len(devices), config.fsdp
  if count % fsdp:
    valid = ', '.join(str(size) for size in range(1, count + 1) if count % size == 0)
    raise errors.InputError(f'config.mesh.fsdp={fsdp} must divide the {count} devices; valid: {valid}')
  if fsdp > 1 and any(size % fsdp for size in slices.values()):
    _log.info(
      f'config.mesh.fsdp={fsdp} spans slices or nodes, which have {min(slices.values())} devices: parameters pass '
      'through the network between them at every step; a divisor of this number keeps them within'
    )
  # Uses Auto, because jax's default, Explicit, fails in convolutions with a split kernel.
  return Mesh(np.array(devices).reshape(count // fsdp, fsdp), (DATA, FSDP), axis_types=(AxisType.Auto,) * 2)


def _slice(device: jax.Device) -> int:
  return getattr(device, 'slice_index', None) or 0  # devices of CPUs have none


def on_cpu(mesh: Mesh) -> bool:
  """Returns whether the devices of a mesh are CPUs; they need not include jax's default device."""
  return mesh.devices.flat[0].platform == 'cpu'


def inside(fn: Callable, mesh: Mesh) -> Callable:
  """Returns `fn`, which jax then traces with the axes of a mesh in its context, see `count_devices`."""

  @functools.wraps(fn)
  def traced(*args):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return fn(*args)

  return traced


def count_devices() -> int:
  """Returns the number of devices that share the batches of the program that jax traces; 1 outside of `inside`."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.size


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that splits the leading axis over all devices, in mesh order."""
  return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
  """Returns the sharding that puts the whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(mesh: Mesh | AbstractMesh, tree: Tree, axes: Mapping[str, int | None] | None = None) -> Tree:
  """Returns the sharding of each leaf of a train state; a momentum has that of its parameter.

  A parameter is split as `axes` says of its path, and a leaf that belongs to one, such as a momentum, as of the longest
  end of its path that is a parameter's. Where `axes` says nothing, `axis_by_size` does.

  Args:
    mesh: mesh from `make_mesh`.
    tree: any pytree of arrays or of shapes (`jax.eval_shape`).
    axes: by the paths of parameters, the axis to split, or None to keep the parameter whole; see `sharding.match`.

  Returns:
    A pytree of NamedShardings with the same structure.
  """
  named, fsdp = axes or {}, mesh.shape[FSDP]

  def choose(path, leaf):
    ends = [jax.tree_util.keystr(path[place:], simple=True, separator='/') for place in range(len(path))]
    own = next((end for end in ends if end in named), None)
    axis = None if own is None else named[own]
    if own is not None and (axis is None or (axis < leaf.ndim and leaf.shape[axis] % fsdp == 0)):
      return axis
    return axis_by_size(jax.tree_util.keystr(path, simple=True, separator='/'), leaf, fsdp)

  def sharding(path, leaf):
    axis = None if fsdp == 1 else choose(path, leaf)
    return replicated(mesh) if axis is None else NamedSharding(mesh, PartitionSpec(*[None] * axis, FSDP))

  return jax.tree_util.tree_map_with_path(sharding, tree)


def axis_by_size(path: str, leaf: jax.Array | jax.ShapeDtypeStruct, fsdp: int) -> int | None:
  """Returns the axis along which a leaf is split over `fsdp` devices if no rule says so; None: it stays whole.

  It is the largest axis that they divide, of equally large ones the last, of a leaf of at least `SMALLEST_SPLIT_LEAF`
  numbers. The row axis of scanned leaves is never split, because a scan reads one row at a time.
  """
  if leaf.size < SMALLEST_SPLIT_LEAF:
    return None
  valid = [axis for axis in range(int(trees.is_scanned(path)), leaf.ndim) if leaf.shape[axis] % fsdp == 0]
  return max(valid, key=lambda axis: (leaf.shape[axis], axis), default=None)


def gather_for_use(params: Tree, axes: Mapping[str, int | None] | None = None) -> Tree:
  """Gathers split parameters where a program uses them, and splits the gradients that come back.

  Without this, XLA would split what it computes by channels too, and exchange activations between the layers. With it,
  devices exchange parameters and gradients only: XLA makes one reduce-scatter of a gradient's sum and its split (on
  CPU, an all-reduce and a slice). Outside of `inside`, or if nothing is split, it returns its input.

  Args:
    params: parameters that lie as `parameter_shardings` says.
    axes: as there.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.shape[FSDP] == 1:
    return params
  return jax.tree.map(_gather, parameter_shardings(mesh, params, axes), params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(sharding: NamedSharding, leaf: jax.Array) -> jax.Array:
  return jax.lax.with_sharding_constraint(leaf, NamedSharding(sharding.mesh, PartitionSpec()))


_gather.defvjp(
  lambda sharding, leaf: (_gather(sharding, leaf), None),
  lambda sharding, _, gradient: (jax.lax.with_sharding_constraint(gradient, sharding),),
)


def check_batch(name: str, batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
  """Checks that the devices and micro-batches divide a batch evenly.

  Args:
    name: name of the option, for the message (`'config.train.batch_size'`).
    batch_size: number of examples over all devices.
    mesh: mesh from `make_mesh`.
    accumulate: micro-batches per step.

  Raises:
    errors.InputError: `batch_size` is not a multiple of devices x micro-batches; the message names the nearest ones.
  """
  unit = mesh.size * accumulate
  below = batch_size // unit * unit
  if batch_size == below:
    return
  parts = f'{mesh.size} devices' + (f' x {accumulate} micro-batches = {unit}' if accumulate > 1 else '')
  nearest = f'{below} and {below + unit}' if below else f'{unit}'
  raise errors.InputError(f'{name}={batch_size} must be a multiple of {parts}; nearest: {nearest}')


def divisible(count: int, mesh: Mesh) -> int:
  """Rounds `count` rows up to a multiple of the number of devices of a mesh."""
  return -(-count // mesh.size) * mesh.size


def place(tree: Tree, shardings: Tree) -> Tree:
  """Puts host values, which must be equal on every process, onto the mesh; each process writes only its own devices.

  Args:
    tree: pytree of host arrays or numbers.
    shardings: one sharding, or a tree of them as from `parameter_shardings`.
  """
  if isinstance(shardings, NamedSharding):
    shardings = jax.tree.map(lambda _: shardings, tree)

  def put(value, sharding):
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

  with jax.transfer_guard('allow'):
    return jax.tree.map(put, tree, shardings)


def shapes(tree: Tree, shardings: Tree) -> Tree:
  """Returns the shapes and dtypes of a tree with their shardings, to compile a program before its arguments exist.

  Args:
    tree: pytree of arrays, or of shapes (`jax.eval_shape`).
    shardings: one sharding, or a tree of them as from `parameter_shardings`.
  """
  if isinstance(shardings, NamedSharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings
  )


def gather(tree: Tree) -> Tree:
  """Copies a whole tree from the mesh to every host, leaf by leaf; every process must call it.

  Args:
    tree: pytree of arrays.

  Returns:
    A pytree of numpy arrays with the same structure.
  """

  def fetch(leaf):
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
      return leaf
    return multihost_utils.process_allgather(leaf, tiled=True)

  return jax.device_get(jax.tree.map(fetch, tree))


def constrain_batch(tree: Tree, mesh: Mesh) -> Tree:
  """Constrains every leaf, inside jit, to split its leading axis over all devices."""
  return jax.lax.with_sharding_constraint(tree, batch_sharding(mesh))
