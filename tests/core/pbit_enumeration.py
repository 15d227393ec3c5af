"""Every sample of few p-bits with its probability, in float64."""

import itertools

import numpy as np

from fflax.core.pbit_config import PbitConfig


def words_of(v: float, config: PbitConfig) -> list[tuple[int, float]]:
  """Every word that a site can draw, and its probability."""
  p = 1 / (1 + np.exp(-(v - np.arange(1, config.units + 1) + 0.5)))
  if config.noise == "shared":
    edges = np.concatenate([[1.0], p, [0.0]])
    return [((1 << k) - 1, edges[k] - edges[k + 1]) for k in range(config.units + 1)]
  choices = np.array(list(itertools.product((0, 1), repeat=config.units)))
  chances = np.prod(np.where(choices, p, 1 - p), axis=1)
  words = choices @ (1 << np.arange(config.units))
  return list(zip(words.tolist(), chances.tolist(), strict=True))


def window_distribution(v: np.ndarray, config: PbitConfig) -> np.ndarray:
  """`P(z = k)` of one 2x2 window of pre-activations `[4]`, by enumeration, float64."""
  chances = np.zeros(config.units + 1)
  for site in itertools.product(*(words_of(float(x), config) for x in v)):
    found = [word for word, _ in site]
    if config.pool == "count":
      z = max(word.bit_count() for word in found)
    else:
      z = (found[0] | found[1] | found[2] | found[3]).bit_count()
    chances[z] += np.prod([p for _, p in site])
  return chances
