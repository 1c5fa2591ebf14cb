"""GRUN: unlearning with gated, low-rank interventions on a frozen language model (arXiv:2502.17823).

Importing this package loads neither torch nor transformers, so that a laptop or a CI runner can read and
check any recipe. The method lives in the subpackages, in the order in which the data meets them:
``data``, ``lm``, ``gates``, ``interventions``, ``objectives``, ``training``, ``adapters``, ``evaluation``, ``promotion``.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
