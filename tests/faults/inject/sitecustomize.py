"""Imported by every interpreter that finds it on its path: makes the functions that the environment names fail.

Standard library alone: it runs in processes of Ray, of MLflow and of ours, before anything of theirs.
"""

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

_ERRORS = {"enospc": 28, "erofs": 30}


def _is_here(injection: dict[str, Any]) -> bool:
    if injection["rank"] is not None and os.environ.get("RANK") != str(injection["rank"]):
        return False
    if injection["once"] is None:
        return True
    try:
        os.close(os.open(injection["once"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _happen(injection: dict[str, Any]) -> None:
    kind = injection["do"]
    if kind in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    elif kind in _ERRORS:
        raise OSError(_ERRORS[kind], os.strerror(_ERRORS[kind]), injection["where"])


def _wrapped(function: Callable[..., Any], injection: dict[str, Any]) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        is_now = calls == injection["nth"] or (injection["always"] and calls > injection["nth"])
        if not is_now or not _is_here(injection):
            return function(*args, **kwargs)
        if injection["do"] == "skip":
            return None
        if injection["do"] == "replace":
            module, _, name = injection["by"].partition(":")
            return getattr(importlib.import_module(module), name)(function, *args, **kwargs)
        if not injection["after"]:
            _happen(injection)
            return function(*args, **kwargs)
        result = function(*args, **kwargs)
        _happen(injection)
        return result

    return call


def _apply(module: types.ModuleType, injections: Sequence[dict[str, Any]]) -> None:
    for injection in injections:
        *parents, name = injection["where"].partition(":")[2].split(".")
        owner: Any = functools.reduce(getattr, parents, module)
        found = vars(owner)[name] if parents else getattr(owner, name)
        if isinstance(found, classmethod | staticmethod):
            setattr(owner, name, type(found)(_wrapped(found.__func__, injection)))
        else:
            setattr(owner, name, _wrapped(found, injection))


class _Loader(importlib.abc.Loader):
    """Loads a module as ever, and then changes it."""

    def __init__(self, loader: Any, injections: Sequence[dict[str, Any]]) -> None:
        self.loader = loader
        self.injections = injections

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        made: types.ModuleType | None = self.loader.create_module(spec)
        return made

    def exec_module(self, module: types.ModuleType) -> None:
        self.loader.exec_module(module)
        _apply(module, self.injections)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that are to be changed."""

    def __init__(self, injections: Sequence[dict[str, Any]]) -> None:
        self.by_module: dict[str, list[dict[str, Any]]] = {}
        for injection in injections:
            self.by_module.setdefault(injection["where"].partition(":")[0], []).append(injection)
        self.finding: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.by_module or fullname in self.finding:
            return None
        self.finding.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.finding.discard(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.by_module[fullname])
        return spec


if injections := json.loads(os.environ.get("FAULT_INJECTIONS", "[]")):
    sys.meta_path.insert(0, _Finder(injections))

if shift := float(os.environ.get("FAULT_CLOCK", "0")):
    import datetime
    import time

    _time, _time_ns = time.time, time.time_ns
    time.time = lambda: _time() + shift
    time.time_ns = lambda: _time_ns() + int(shift * 1e9)

    class _Shifted(datetime.datetime):
        """What modules of ours get for `datetime`: the class itself cannot be changed, and others compare with it."""

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return datetime.datetime.now(tz) + datetime.timedelta(seconds=shift)

    class _ClockFinder(importlib.abc.MetaPathFinder):
        """Gives modules of ours the clock that is wrong."""

        finding: set[str] = set()  # noqa: RUF012 - one finder a process

        def find_spec(
            self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
        ) -> importlib.machinery.ModuleSpec | None:
            if fullname.partition(".")[0] not in ("pipelines", "grun") or fullname in self.finding:
                return None
            self.finding.add(fullname)
            try:
                spec = importlib.util.find_spec(fullname)
            finally:
                self.finding.discard(fullname)
            if spec is not None and spec.loader is not None:
                spec.loader = _ClockLoader(spec.loader, [])
            return spec

    class _ClockLoader(_Loader):
        def exec_module(self, module: types.ModuleType) -> None:
            super().exec_module(module)
            if getattr(module, "datetime", None) is datetime.datetime:
                module.datetime = _Shifted  # type: ignore[attr-defined]

    sys.meta_path.insert(0, _ClockFinder())
