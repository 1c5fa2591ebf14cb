"""Read a checkpoint of the official GRUN code as an adapter.

    folder/config.json                                                  pyvene's: where the interventions sit
    folder/intkey_layer.{l}.comp.block_output.unit.pos.nunit.1#0.bin    one pickled dictionary of tensors per block:
        weight (r, D), bias (r,)    W and b of LoReFT
        rotate_layer (D, r)         R, with orthonormal columns
        gate_func.*                 one linear layer, or the linear layers of a multilayer perceptron at its even indices

Source: arXiv:2502.17823 and its code. Tensors are read with `weights_only`, which refuses every pickle that would call
anything else. The format has no gate threshold, so gates are soft; it does not name its base, so the caller vouches
for it; and it does not say how prompts were built: the official code writes "Question: {q} \\nAnswer: ", in training
and in use, and these gates know no other.

Shapes: D hidden size, r rank.
"""

import io
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grun.adapters.folder import AdapterCard
from grun.config import AdapterConfig, GateConfig, LinearGateConfig, Mlp3GateConfig, Mlp5GateConfig
from grun.errors import AdapterError, ConfigError
from grun.gates import build_gate
from grun.interventions import Adapter, GatedIntervention, build_adapter
from grun.lm import FrozenLM
from grun.reading import MalformedError, named, parse_json, read_bytes, read_text, reason_of, shown

__all__ = ["import_official"]

_LAYER_FILE = re.compile(r"intkey_layer\.(0|[1-9][0-9]*)\.comp\.block_output\.unit\.pos\.nunit\.1#0\.bin")
_BASE_FILE = "pytorch_model.bin"
_GATES: tuple[GateConfig, ...] = (LinearGateConfig(), Mlp3GateConfig(), Mlp5GateConfig())
_ORTHONORMAL_TOLERANCE = 1e-4
_MAX_CONFIG, _MAX_LAYER = 2**20, 2**28
"""Bytes of `config.json` and of a layer file: a rank of thousands."""

State = dict[str, Tensor]


def import_official(folder: Path, lm: FrozenLM) -> tuple[Adapter, AdapterCard]:
    """Import an official checkpoint for a base; nothing of it is executed.

    Returns:
        The adapter, in float32 and with soft gates, and a card that binds it to this base.

    Raises:
        AdapterError: not such a checkpoint, damaged, incomplete, or for a base of another shape.
    """
    files = _layer_files(folder)
    _check_config(folder, set(files))
    states = {layer: _read_tensors(path) for layer, path in files.items()}
    _check_base_untouched(folder)
    gate, rank = _common_shape(states, lm.hidden_size)
    config = AdapterConfig(layers=tuple(states), rank=rank, gate=gate, gate_threshold=None)
    try:
        adapter = build_adapter(config, hidden_size=lm.hidden_size, num_layers=lm.num_layers, seed=0)
    except ConfigError as error:
        raise AdapterError(
            f"a checkpoint must fit its base, got {str(folder)!r}: {error}; use the base it was trained on"
        ) from None
    for layer, state in states.items():
        _load(adapter.at(layer), state, where=files[layer])
    card = AdapterCard(
        adapter=config,
        hidden_size=lm.hidden_size,
        num_layers=lm.num_layers,
        base_name=lm.info.name,
        base_revision=lm.info.revision,
        base_digest=lm.info.digest,
        base_dtype="bfloat16",  # what the official code trains on
    )
    return adapter.to(lm.device).eval(), card


def _layer_files(folder: Path) -> dict[int, Path]:
    """The file of each edited block, shallowest first."""
    binaries = sorted(path for path in folder.iterdir() if path.suffix == ".bin") if folder.is_dir() else []
    matches = {path: _LAYER_FILE.fullmatch(path.name) for path in binaries if path.name != _BASE_FILE}
    unknown = [path.name for path, match in matches.items() if match is None]
    if unknown:
        raise AdapterError(
            f"an official checkpoint must edit one position of block outputs, got {shown(unknown)} in {str(folder)!r}; "
            "only files `intkey_layer.{l}.comp.block_output.unit.pos.nunit.1#0.bin` can be imported"
        )
    layers = {int(match[1]): path for path, match in matches.items() if match}
    if not layers:
        raise AdapterError(
            "an official checkpoint is a folder with one `intkey_layer.*.bin` per edited block, "
            f"got none in {str(folder)!r}; check the path"
        )
    return dict(sorted(layers.items()))


def _check_config(folder: Path, layers: set[int]) -> None:
    """Check that `config.json` places one intervention on the output of each block that has a file, and no other."""
    path = folder / "config.json"
    try:
        values = parse_json(read_text(path, limit=_MAX_CONFIG, owned=True))
        placed = sorted(tuple(row[:4]) for row in values["representations"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"an official checkpoint must have a config.json that lists its `representations`, got {str(path)!r} "
            f"({type(error).__name__}: {reason_of(error)}); copy it from the folder of the finished training run"
        ) from None
    expected = [(layer, "block_output", "pos", 1) for layer in sorted(layers)]
    if placed != expected:
        raise AdapterError(
            f"config.json must place one intervention on each block that has a file, {expected}, got {shown(placed)} in {str(path)!r}; "
            "copy the config.json of the same training run"
        )


def _read_tensors(path: Path) -> State:
    """Read a dictionary of finite floating-point tensors, as float32."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what torch only wonders about, torch never wrote
            values: Any = torch.load(_unpacked(path), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged or hostile pickle ends in whatever its bytes lead to
        raise AdapterError(
            f"a layer file must be a pickle of tensors and nothing else, got {str(path)!r}, which was refused "
            f"({type(error).__name__}); do not load it by other means, fetch it again from its author"
        ) from None
    if not isinstance(values, dict):
        raise AdapterError(
            f"a layer file must hold a dictionary of tensors, got {type(values).__name__} in {str(path)!r}; check the file"
        )
    for name, value in values.items():
        if not isinstance(name, str) or not _is_dense(value) or not bool(value.isfinite().all()):
            raise AdapterError(
                f"a layer file must hold finite floating-point tensors, got another {named(name)} in {str(path)!r}; fetch it again"
            )
    return {name: value.float() for name, value in values.items()}


def _is_dense(value: object) -> bool:
    """Whether a value is a tensor with a number in the file for each of its own: with strides of zero, one stands for any many."""
    return (
        type(value) is Tensor
        and value.layout == torch.strided
        and value.is_floating_point()
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _unpacked(path: Path) -> io.BytesIO:
    """The archive again, as torch writes it: nothing in it compressed, and so nothing larger than the file.

    Raises:
        MalformedError: it is compressed, too large, or no archive; as that of a torch before 1.6 is.
        OSError: it cannot be read.
    """
    content = io.BytesIO(read_bytes(path, limit=_MAX_LAYER, owned=True))
    again = io.BytesIO()
    with zipfile.ZipFile(content) as archive, zipfile.ZipFile(again, "w") as copy:
        members = archive.infolist()
        packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
        if packed or sum(member.file_size for member in members) > content.getbuffer().nbytes:
            raise MalformedError("compressed, or files that overlap")
        for member in members:
            copy.writestr(zipfile.ZipInfo(member.filename), archive.read(member))
    again.seek(0)
    return again


def _check_base_untouched(folder: Path) -> None:
    """Trainer checkpoints carry the trained weights of the base: none, as it was frozen."""
    path = folder / _BASE_FILE
    if path.exists() and (names := sorted(_read_tensors(path))):
        raise AdapterError(
            f"an adapter must leave its base as it was, got {len(names)} trained base tensors ({names[0][:60]}, ...) "
            f"in {str(path)!r}; only checkpoints of a frozen base can be imported"
        )


def _common_shape(states: dict[int, State], hidden_size: int) -> tuple[GateConfig, int]:
    """Return the gate and the rank that every block has, after all names and shapes have been checked."""
    shapes = {
        layer: (_gate_of(state, layer, hidden_size), _rank_of(state, layer, hidden_size)) for layer, state in states.items()
    }
    for layer, (gate, rank) in shapes.items():
        expected = {
            "weight": (rank, hidden_size),
            "bias": (rank,),
            "rotate_layer": (hidden_size, rank),
            **_gate_shapes(gate, hidden_size),
        }
        found = {name: tuple(value.shape) for name, value in states[layer].items()}
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if wrong:
            name = wrong[0]
            raise AdapterError(
                f"block {layer} of a checkpoint with a {gate.kind} gate and rank {rank} must have exactly {sorted(expected)}, "
                f"got {named(name)} of shape {found.get(name)} instead of {expected.get(name)}; get the file again from its author"
            )
    if len(set(shapes.values())) != 1:
        listed = {layer: (gate.kind, rank) for layer, (gate, rank) in shapes.items()}
        raise AdapterError(
            f"all blocks of a checkpoint must have the same gate and rank, got {listed}; "
            "collect the files of one training run in a folder"
        )
    return next(iter(shapes.values()))


def _gate_shapes(gate: GateConfig, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Names in the official format, and shapes, of a gate's tensors."""
    with torch.device("meta"):
        state = build_gate(gate, hidden_size).state_dict()
    return {f"gate_func.{name.partition('.')[2]}": tuple(value.shape) for name, value in state.items()}


def _gate_of(state: State, layer: int, hidden_size: int) -> GateConfig:
    names = {name for name in state if name.startswith("gate_func.")}
    for gate in _GATES:
        if names == _gate_shapes(gate, hidden_size).keys():
            return gate
    raise AdapterError(
        f"block {layer} of a checkpoint must have a gate of kind {[gate.kind for gate in _GATES]}, "
        f"got the gate tensors {shown(sorted(names))}; interventions without a gate, or with another one, cannot be imported"
    )


def _rank_of(state: State, layer: int, hidden_size: int) -> int:
    basis = state.get("rotate_layer")
    if basis is None or basis.ndim != 2 or basis.shape[0] != hidden_size or not 1 <= basis.shape[1] <= hidden_size:
        raise AdapterError(
            f"block {layer} of a checkpoint must have a `rotate_layer` of shape ({hidden_size}, rank), by the hidden size "
            f"of this base, got {None if basis is None else tuple(basis.shape)}; use the base it was trained on"
        )
    return basis.shape[1]


def _load(gated: GatedIntervention, state: State, *, where: Path) -> None:
    """Put the tensors of one block into its intervention; names and shapes are known to fit."""
    basis = state["rotate_layer"]
    error = (basis.T @ basis - torch.eye(basis.shape[1])).abs().max().item()
    if error > _ORTHONORMAL_TOLERANCE:
        raise AdapterError(
            f"`rotate_layer` must have orthonormal columns to {_ORTHONORMAL_TOLERANCE:g}, got a deviation of {error:.2g} "
            f"in {str(where)!r}; the official code loses this when it resumes, so import a checkpoint of an uninterrupted run"
        )
    gated.intervention.set_basis(basis)
    gated.intervention.learned_source.load_state_dict({name: state[name] for name in ("weight", "bias")})
    (layers,) = gated.gate.children()
    layers.load_state_dict(
        {name.removeprefix("gate_func."): value for name, value in state.items() if name.startswith("gate_func.")}
    )
