"""The shapes that `plan` calculates with: models and GPUs, as tables of published numbers. Free of torch.

Letters: L blocks, D hidden size, F inner size of an MLP, H and K query and key heads, E width of a head, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["GPUS", "GPUS_PER_NODE", "MODELS", "Gpu", "ModelShape", "llama_shape"]


@dataclass(frozen=True)
class ModelShape:
    """What of a decoder decides its costs."""

    name: str
    num_layers: int
    """Decoder blocks L."""
    hidden_size: int
    """Width D of the residual stream."""
    inner_size: int
    """Width F inside the MLP of a block."""
    num_heads: int
    """Query heads H."""
    num_key_heads: int
    """Key heads K: query heads share them in groups."""
    head_size: int
    """Width E of a head."""
    vocab_size: int
    """Tokens V, which the head tells apart."""
    context_tokens: int
    """Longest sequence."""
    block_matrix_parameters: int
    """Weights of a block's matrices: what a token is multiplied with, and what ZeRO-3 shards."""
    block_vector_parameters: int
    """Norms and biases of a block, which ZeRO-3 leaves whole."""
    other_parameters: int
    """What is neither in a block nor embedding or head: the final norm, and a table of positions where there is one."""
    shares_embedding: bool
    """Whether the head is the embedding's own matrix."""

    @property
    def block_parameters(self) -> int:
        """All weights of a block."""
        return self.block_matrix_parameters + self.block_vector_parameters

    @property
    def head_parameters(self) -> int:
        """V D, of the head as of the embedding."""
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All weights: the blocks, the embedding, the head where it is one of its own, and the rest."""
        ends = self.head_parameters * (1 if self.shares_embedding else 2)
        return self.num_layers * self.block_parameters + ends + self.other_parameters

    @property
    def key_value_size(self) -> int:
        """Numbers in the key (or value) of one token in one block: K E."""
        return self.num_key_heads * self.head_size

    @property
    def query_size(self) -> int:
        """Numbers in the query of one token in one block: H E."""
        return self.num_heads * self.head_size


def llama_shape(
    name: str,
    *,
    num_layers: int,
    hidden_size: int,
    inner_size: int,
    num_heads: int,
    num_key_heads: int,
    vocab_size: int,
    context_tokens: int,
) -> ModelShape:
    """Derive the shape of a Llama from its configuration.

    A block has matrices for queries and output (D x H E), keys and values (D x K E), and the three of its MLP (D x F), no
    biases, and two norms of D; H E = D.
    """
    head_size = hidden_size // num_heads
    attention = 2 * hidden_size * hidden_size + 2 * hidden_size * num_key_heads * head_size
    return ModelShape(
        name=name,
        num_layers=num_layers,
        hidden_size=hidden_size,
        inner_size=inner_size,
        num_heads=num_heads,
        num_key_heads=num_key_heads,
        head_size=head_size,
        vocab_size=vocab_size,
        context_tokens=context_tokens,
        block_matrix_parameters=attention + 3 * hidden_size * inner_size,
        block_vector_parameters=2 * hidden_size,
        other_parameters=hidden_size,
        shares_embedding=False,
    )


_LLAMAS = (
    llama_shape(
        "8b",
        num_layers=32,
        hidden_size=4096,
        inner_size=14336,
        num_heads=32,
        num_key_heads=8,
        vocab_size=128256,
        context_tokens=131072,
    ),
    llama_shape(
        "70b",
        num_layers=80,
        hidden_size=8192,
        inner_size=28672,
        num_heads=64,
        num_key_heads=8,
        vocab_size=128256,
        context_tokens=131072,
    ),
    llama_shape(
        "405b",
        num_layers=126,
        hidden_size=16384,
        inner_size=53248,
        num_heads=128,
        num_key_heads=8,
        vocab_size=128256,
        context_tokens=131072,
    ),
)

MODELS: Mapping[str, ModelShape] = {shape.name: shape for shape in _LLAMAS}
"""Llama 3.1 by size (The Llama 3 Herd of Models, arXiv:2407.21783, table 3; vocabulary and context from the same)."""


@dataclass(frozen=True)
class Gpu:
    """One GPU of a node of eight, with its share of what the node has. Bandwidths are in one direction."""

    name: str
    memory_bytes: float
    """Memory of the device."""
    flops_per_second: float
    """Peak of dense bfloat16 products; data sheets also print twice that, for sparse ones."""
    memory_bytes_per_second: float
    """Bandwidth of the device's memory."""
    link_bytes_per_second: float
    """To the other GPUs of the node, over NVLink; data sheets print twice that, for both directions."""
    network_bytes_per_second: float
    """To other nodes: one adapter a GPU."""
    disk_bytes_per_second: float = 6.8e9
    """From the node's own disks: one NVMe drive on four lanes of PCIe 4.0 a GPU, as data sheets of such drives have it."""
    disk_bytes: float = 3.84e12
    """On the node's own disks: eight drives of 3.84 TB in a DGX H100 or H200."""


GPUS_PER_NODE = 8
"""GPUs that are linked by NVLink, in each of the systems below."""

_GPUS = (
    Gpu("a100", 80e9, 312e12, 2.039e12, 300e9, 25e9),
    Gpu("h100", 80e9, 989e12, 3.35e12, 450e9, 50e9),
    Gpu("h200", 141e9, 989e12, 4.8e12, 450e9, 50e9),
    Gpu("b200", 180e9, 2250e12, 8.0e12, 900e9, 50e9),
)

GPUS: Mapping[str, Gpu] = {gpu.name: gpu for gpu in _GPUS}
"""NVIDIA's own numbers: data sheets of the A100 80 GB, H100, H200 (SXM) and HGX B200; network of the DGX systems they come in.

The A100's network is 200 Gb/s a GPU, the others' 400 Gb/s.
"""
