"""GRUN: unlearning with gated, low-rank interventions on a frozen language model (arXiv:2502.17823).

Importing this package loads neither torch nor transformers, so that a laptop or a CI runner can read and
check any recipe. The method lives in the subpackages, in the order in which the data meets them:
``data``, ``lm``, ``gates``, ``interventions``, ``objectives``, ``training``, ``adapters``, ``evaluation``, ``promotion``.
"""

import logging

__version__ = "0.1.0"

__all__ = ["__version__"]

# transformers imports torchao wherever it is installed; without a GPU it then reports kernels that it could not load, and
# torch reports names that torchao still uses: in every process, and nobody could do anything about it
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
