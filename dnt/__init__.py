"""dnt: train, understand and fine-tune deep networks in JAX and Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from dnt.inference import load as load
  from dnt.loop import train as train

__version__ = '0.1.0'
__all__ = ['__version__', 'load', 'train']


def __getattr__(name: str) -> Any:
  """Imports `dnt.train` and `dnt.load` at first use, since programs print their help and errors without jax."""
  if name == 'load':
    from dnt.inference import load

    return load
  if name == 'train':
    from dnt.loop import train

    return train
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return __all__
