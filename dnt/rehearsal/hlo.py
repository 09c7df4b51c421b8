"""Reads what a compiled program does from its HLO text: its collectives, and the bytes that it reads and writes.

The text is that of one chip. Loops count as often as they run; a loop whose number of turns is not known before it
runs, such as that over the steps of one dispatch, counts once.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

SEND = 'send'  # to the same chip of the other slices, through the network
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
# What collectives are for. Parameters and activations are gathered, under fsdp, where a product needs them whole.
STATISTICS, GRADIENTS, PARAMETERS = 'BatchNorm statistics', 'gradients', 'parameters'
ACTIVATIONS, OTHERS = 'activations', 'others'
# Instructions that move no bytes themselves.
_FREE = {
  *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call', 'after-all'),
  *('partition-id', 'replica-id', 'iota', 'optimization-barrier', 'opt-barrier', 'domain'),
}
_BACKWARD = 'norms, backward'  # until it is known which norm
_MOVES = {
  *('get-tuple-element', 'bitcast', 'copy', 'convert', 'transpose', 'reshape', 'reverse', 'copy-start', 'copy-done'),
}
_SLICES = ('dynamic-slice', 'gather', 'slice')
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\](\{[^}]*\})?')
_CALLED = re.compile(r'(?:calls|body|condition|to_apply)=%?([\w.-]+)|branch_computations=\{([^}]*)\}')
_NAME = re.compile(r'%([\w.-]+)')


class Array(NamedTuple):
  """An array of the program; `on_chip`: it lives in the chip's fast memory and not in its main memory."""

  bytes: int
  on_chip: bool


class Instruction(NamedTuple):
  """One line of the text."""

  name: str
  arrays: tuple[Array, ...]
  opcode: str
  operands: tuple[str, ...]
  attributes: str

  @property
  def bytes(self) -> int:
    return sum(array.bytes for array in self.arrays)

  @property
  def scope(self) -> str:
    """Returns the names of the functions and modules from which the instruction comes."""
    match = re.search(r'op_name="([^"]*)"', self.attributes)
    return match[1] if match else ''


Computation = dict[str, Instruction]


class Collective(NamedTuple):
  """Describes a collective of one step.

  Attributes:
    kind: of `COLLECTIVES`, or `SEND`.
    bytes: of the arrays that it handles, by purpose: the whole arrays, so of a gather its results and of a scatter its
      operands.
    group: number of chips that take part together.
    span: number of chips from the first to the last of them, in the order of the mesh.
    times: how often it runs in a step.
  """

  kind: str
  bytes: dict[str, int]
  group: int
  span: int
  times: int

  @property
  def purpose(self) -> str:
    """Returns the purpose of most of its bytes."""
    return max(self.bytes, key=lambda purpose: self.bytes[purpose])

  @property
  def total(self) -> int:
    return sum(self.bytes.values())

  @property
  def sent(self) -> float:
    """Returns the bytes that each chip sends, if the chips form a ring."""
    if self.kind == SEND:
      return self.total
    turns = {'all-reduce': 2, 'collective-permute': self.group / max(self.group - 1, 1)}.get(self.kind, 1)
    return turns * self.total * (self.group - 1) / self.group


class Costs(NamedTuple):
  """What a step does on one chip: its collectives, and the bytes that it moves from and to main memory."""

  collectives: tuple[Collective, ...]
  bytes: int


def measure(text: str, chips: int) -> Costs:
  """Measures a program.

  Args:
    text: `as_text()` of a compiled program.
    chips: number of chips of the mesh.
  """
  computations, entry = parse(text)
  found, channels, total = [], set(), 0
  for instruction, computation, times in _run(computations, entry, 1):
    kind = _collective(instruction, computations)
    channel = _channel(instruction, computations) if kind else None
    if kind and (channel is None or channel not in channels):  # of TPUs, one may run across several fusions
      channels.add(channel)
      found.append(_describe(kind, instruction, computation, computations, times, chips))
    total += times * _traffic(instruction, computation, computations)
  return Costs(tuple(_named(found)), total)


def parse(text: str) -> tuple[dict[str, Computation], str]:
  """Parses a module: its computations by name, and the name of the entry."""
  computations, entry, current = {}, '', {}
  for line in text.splitlines():
    if line.endswith('{') and not line.startswith((' ', '#', 'HloModule')):
      match = re.match(r'(ENTRY )?%?([\w.-]+)', line)
      if match:
        current = computations[match[2]] = {}
        entry = match[2] if match[1] else entry
    elif ' = ' in line and line.startswith(' '):
      instruction = _parse_line(line)
      if instruction:
        current[instruction.name] = instruction
  return computations, entry


def _parse_line(line: str) -> Instruction | None:
  line = re.sub(r'/\*.*?\*/', '', line)
  match = re.match(r'\s+(?:ROOT )?%?([\w.-]+) = ', line)
  if match is None:
    return None
  rest = line[match.end() :]
  end = _closing(rest) + 1 if rest.startswith('(') else rest.index(' ')
  shape, rest = rest[:end], rest[end:].lstrip()
  opening = rest.index('(')
  closing = opening + _closing(rest[opening:])
  inside, code = rest[opening + 1 : closing], rest[:opening]
  # Of a constant and of a parameter, the parentheses hold its value and its place.
  attributes = inside if code in ('constant', 'parameter') else rest[closing + 1 :]
  return Instruction(match[1], _arrays(shape), code, tuple(_NAME.findall(inside)), attributes)


def _closing(text: str) -> int:
  """Returns the place of the parenthesis that closes the first one."""
  depth = 0
  for place, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if depth == 0:
      return place
  return len(text) - 1


def _arrays(shape: str) -> tuple[Array, ...]:
  found = []
  for dtype, sizes, layout in _ARRAY.findall(shape):
    count = math.prod(int(size) for size in sizes.split(',') if size)
    number = re.search(r'\d+', dtype)
    bits = 8 if dtype == 'pred' else int(number[0]) if number else 0  # a token has none
    found.append(Array(count * bits // 8, 'S(' in layout))
  return tuple(found)


def _run(computations: dict[str, Computation], name: str, times: int) -> Iterator[tuple[Instruction, Computation, int]]:
  """Yields the instructions that run, with their computation and how often; not those within fusions."""
  for instruction in computations.get(name, {}).values():
    yield instruction, computations[name], times
    inner = times * (_turns(instruction, computations) if instruction.opcode == 'while' else 1)
    if instruction.opcode in ('while', 'conditional', 'call', 'async-start'):
      for called in _called(instruction):
        yield from _run(computations, called, inner)


def _called(instruction: Instruction) -> list[str]:
  names = []
  for single, several in _CALLED.findall(instruction.attributes):
    names += [single] if single else _NAME.findall(several)
  return names


def _turns(loop: Instruction, computations: dict[str, Computation]) -> int:
  """Returns how often a loop runs; 1 if that is known only when it runs."""
  match = re.search(r'known_trip_count\W+n\W+(\d+)', loop.attributes)
  if match:
    return int(match[1])
  condition = re.search(r'condition=%?([\w.-]+)', loop.attributes)
  inside = computations.get(condition[1] if condition else '', {}).values()
  # jax's loops count from 0 to a limit; XLA for TPUs leaves that limit in the condition.
  limits = {each.attributes for each in inside if each.opcode == 'constant' and each.attributes.isdigit()}
  return int(limits.pop()) if len(limits) == 1 else 1


def _collective(instruction: Instruction, computations: dict[str, Computation]) -> str | None:
  """Returns the kind of collective that an instruction starts, or None."""
  kind = instruction.opcode.removesuffix('-start')
  if kind in COLLECTIVES or (kind == SEND and 'megascale' in instruction.attributes):
    return kind
  if instruction.opcode == 'fusion':  # of a TPU
    inner = [each for name in _called(instruction) for each in computations.get(name, {}).values()]
    codes = [each.opcode for each in inner]
    if 'all-reduce' in codes and 'dynamic-slice' in codes:
      return 'reduce-scatter'
    return next((code for code in codes if code in COLLECTIVES), None)
  return None


def _channel(instruction: Instruction, computations: dict[str, Computation]) -> str | None:
  """Returns the number of the collective within a fusion; None of an instruction that is itself a collective."""
  inner = [each for name in _called(instruction) for each in computations.get(name, {}).values()]
  within = [each for each in inner if instruction.opcode == 'fusion' and each.opcode in COLLECTIVES]
  match = re.search(r'channel_id=(\d+)', within[0].attributes) if within else None
  return match[1] if match else None


def _describe(
  kind: str,
  instruction: Instruction,
  computation: Computation,
  computations: dict[str, Computation],
  times: int,
  chips: int,
) -> Collective:
  """Describes the collective that an instruction starts."""
  inner = [each for name in _called(instruction) for each in computations.get(name, {}).values()]
  own = instruction if instruction.opcode != 'fusion' else next(each for each in inner if each.opcode in COLLECTIVES)
  home = computation if own is instruction else {each.name: each for each in inner}
  group, span = _group(own.attributes, chips)
  sizes: dict[str, int] = {}
  for name in own.operands:
    operand = home.get(name)
    if operand is None or operand.opcode == 'after-all':
      continue
    # A gather's result is as many times as large as its operand as chips take part.
    size = operand.bytes * (group if kind == 'all-gather' else 1)
    source = instruction if operand.opcode == 'parameter' else operand
    scope = _scope(source, computation) or own.scope or instruction.scope
    stored = source.operands[0] if source is instruction and source.operands else name
    if kind == 'all-gather' and _is_stored(stored, computation, computations):
      purpose = PARAMETERS
    elif kind == 'all-gather' and _is_reduced(stored, computation, computations):
      purpose = GRADIENTS
    else:
      purpose = _purpose(kind, scope)
    sizes[purpose] = sizes.get(purpose, 0) + size
  return Collective(kind, sizes or {OTHERS: 0}, group, span, times)


def _scope(instruction: Instruction, computation: Computation, depth: int = 4) -> str:
  """Returns the scope of an instruction, or of that from which it takes its value."""
  if instruction.scope or not depth or not instruction.operands:
    return instruction.scope
  before = computation.get(instruction.operands[0])
  return _scope(before, computation, depth - 1) if before else ''


def _is_stored(name: str, computation: Computation, computations: dict[str, Computation]) -> bool:
  """Returns whether an array is an argument of the step, but for its type and its layout, and so a parameter."""
  instruction, element = _moved(computation.get(name), computation)
  while instruction is not None and instruction.opcode == 'fusion':
    # The fusion may only move this one of its operands.
    inner = next((computations[called] for called in _called(instruction) if called in computations), {})
    result = list(inner.values())[-1] if inner else None
    if result is not None and result.opcode == 'tuple':
      result = inner.get(result.operands[element])
    origin, _ = _moved(result, inner)
    if origin is None or origin.opcode != 'parameter':
      return False
    operand = instruction.operands[int(origin.attributes.split(',')[0])]
    instruction, element = _moved(computation.get(operand), computation)
  return instruction is not None and instruction.opcode == 'parameter'


def _is_reduced(name: str, computation: Computation, computations: dict[str, Computation]) -> bool:
  """Returns whether an array is a part of a sum over chips: its gather ends the reduction of a gradient."""
  origin, _ = _moved(computation.get(name), computation)
  if origin is None:
    return False
  return origin.opcode == 'recv-done' or _collective(origin, computations) == 'reduce-scatter'


def _moved(instruction: Instruction | None, computation: Computation) -> tuple[Instruction | None, int]:
  """Follows an array back to where it was computed; returns that instruction, and which of its results it is."""
  element = 0
  while instruction is not None and instruction.opcode in _MOVES and instruction.operands:
    if instruction.opcode == 'get-tuple-element':
      index = re.search(r'index=(\d+)', instruction.attributes)
      element = int(index[1]) if index else 0
    instruction = computation.get(instruction.operands[0])
  return instruction, element


def _purpose(kind: str, scope: str) -> str:
  if kind == 'all-gather' and 'jvp(' in scope:
    return ACTIVATIONS
  if re.search(r'norm[^/]*/.*reduce', scope, re.IGNORECASE) and 'jvp(' in scope:
    return STATISTICS if 'transpose(' not in scope else _BACKWARD
  return GRADIENTS if 'transpose(' in scope or kind in ('reduce-scatter', SEND) else OTHERS


def _named(collectives: list[Collective]) -> list[Collective]:
  """Gives the sums of norms in the backward pass their purpose.

  BatchNorm, of which the forward pass has sums over the batch too, waits for them; of other norms they are gradients.
  """
  purpose = STATISTICS if any(STATISTICS in each.bytes for each in collectives) else GRADIENTS
  named = []
  for each in collectives:
    sizes = dict(each.bytes)
    if _BACKWARD in sizes:
      sizes[purpose] = sizes.get(purpose, 0) + sizes.pop(_BACKWARD)
    named.append(each._replace(bytes=sizes))
  return named


def _group(attributes: str, chips: int) -> tuple[int, int]:
  """Returns the number of chips in each group of a collective, and how many chips lie from its first to its last."""
  if match := re.search(r'replica_groups=mesh\[(.*?)\](.*?)\{(.*?)\}', attributes):
    sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
    used = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match[3])
    group = math.prod(int(part or sizes[axis]) for axis, part in used)
    real = [axis for axis, size in sizes.items() if size > 1]
    names = [axis for axis, _ in used if axis in real]
    # The last axes hold neighbours, unless the devices are in another order.
    near = 'device_ids' not in match[2] and names == real[len(real) - len(names) :]
    return group, group if near else chips
  if match := re.search(r'replica_groups=\[(\d+),(\d+)\]<=\[[\d,]+\](T?)', attributes):
    return int(match[2]), chips if match[3] else int(match[2])
  if match := re.search(r'replica_groups=\{\{([\d,]+)\}', attributes):
    members = [int(number) for number in match[1].split(',')]
    return len(members), max(members) - min(members) + 1
  return chips, chips


def _traffic(instruction: Instruction, computation: Computation, computations: dict[str, Computation]) -> int:
  """Returns the bytes that an instruction reads from and writes to main memory."""

  def stored(arrays):
    return sum(array.bytes for array in arrays if not array.on_chip)

  code = instruction.opcode
  if code in _FREE or code.endswith(('-done', '-update')) or code == 'async-start':
    return 0
  if code.endswith('-start'):
    return stored(instruction.arrays)  # which hold its operands too
  operands = [computation[name] for name in instruction.operands if name in computation]
  if code in _SLICES:
    return 2 * stored(instruction.arrays)
  if code == 'dynamic-update-slice':
    return 2 * stored(operands[1].arrays)
  if code != 'fusion':
    return stored(instruction.arrays) + sum(stored(each.arrays) for each in operands)
  inner = next((computations[name] for name in _called(instruction) if name in computations), {})
  read = sum(min(stored(each.arrays), used) for each, used in zip(operands, _used(inner, len(operands)), strict=True))
  return int(read + min(stored(instruction.arrays), _written(inner)))


def _used(fused: Computation, count: int) -> list[float]:
  """Returns the bytes that a fusion reads of each of its operands, if it takes slices of it; else infinity."""
  found = [math.inf] * count
  parameters = {each.name: each for each in fused.values() if each.opcode == 'parameter'}
  for name, parameter in parameters.items():
    users = [each for each in fused.values() if name in each.operands]
    place = parameter.attributes
    if users and place.isdigit() and int(place) < count:
      if all(each.opcode in _SLICES and each.operands[0] == name for each in users):
        found[int(place)] = sum(each.bytes for each in users)
      elif all(each.opcode == 'dynamic-update-slice' and each.operands[0] == name for each in users):
        found[int(place)] = 0  # it changes the operand in place
  return found


def _written(fused: Computation) -> float:
  """Returns the bytes that a fusion writes, if it updates a slice of its result in place; else infinity."""
  last = list(fused.values())[-1] if fused else None
  if last is None or last.opcode != 'dynamic-update-slice' or len(last.operands) < 2:
    return math.inf
  update = fused.get(last.operands[1])
  return update.bytes if update else math.inf
