"""The two classes we take from pyreft, without what it and pyvene import beside them: the code of every model that they know.

Every process of ours needs these classes, and the rest of the two packages would be a quarter of the time that it takes to start.
"""

import ast
import importlib
import importlib.util
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["LoreftIntervention", "LowRankRotateLayer"]

_BASES = (
    "ConstantSourceIntervention",
    "DistributedRepresentationIntervention",
    "SourcelessIntervention",
    "TrainableIntervention",
)
"""What `pyreft.interventions` asks of pyvene."""


def _unfolded_later(name: str) -> ModuleType:
    """A package whose modules can be imported, and whose own code runs once somebody asks it for a name that this code imports."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    loader, package, names = spec.loader, importlib.util.module_from_spec(spec), _imported_by(Path(spec.origin))

    def unfold(attribute: str) -> Any:
        # pickle asks every module for what it looks for, and many look at `__this__` and `__that__` of a module
        if attribute not in names:
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        vars(package).pop("__getattr__", None)
        with redirect_stdout(StringIO()):  # pyvene prints which extras of its own are not there
            loader.exec_module(package)
        return getattr(package, attribute)

    vars(package)["__getattr__"] = unfold
    sys.modules[name] = package
    return package


def _imported_by(file: Path) -> frozenset[str]:
    """The names that a file imports from others; those of `import *` are not known."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return frozenset(alias.asname or alias.name for node in imports for alias in node.names)


_pyvene = _unfolded_later("pyvene")
for _base in _BASES:
    setattr(_pyvene, _base, getattr(importlib.import_module("pyvene.models.interventions"), _base))
_unfolded_later("pyreft")

from pyreft.interventions import LoreftIntervention, LowRankRotateLayer  # noqa: E402
