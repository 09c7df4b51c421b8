"""The doctor's words: what may be wrong with a network, and a verdict that says so of one."""

import enum
from typing import NamedTuple


class Kind(enum.StrEnum):
  """Names what is wrong with a network, as `probe.json` does."""

  TRAINABLE = 'trainable'  # nothing is
  VANISHING = 'vanishing'
  EXPLODING = 'exploding'
  COLLAPSING = 'collapsing to one direction'
  DEAD = 'dead'
  LARGE_STEP = 'step too large'
  CUT_OFF = 'cut off'
  SQUASHED = 'squashed logits'
  SCALE = 'input scale'
  DECAY = 'weight decay too strong'
  CLIPPED = 'clipping too tight'
  SMALL_BATCH = 'batch too small'
  SMALL_STEP = 'step too small'
  STUCK = 'stuck'  # the network does not learn, and no cause was found


class Verdict(NamedTuple):
  """Holds a verdict on a network, or one of several causes why it does not train.

  Attributes:
    kind: what is wrong.
    entry: the entry where the problem begins; None if it concerns the whole network.
    reason: the measurements behind the verdict, in one line.
  """

  kind: Kind
  entry: str | None
  reason: str
