"""What training an adapter costs, calculated: operations, memory, network and storage, of a step and of a run. Free of torch.

    R rows of a step, forget and retain; each a prompt of p tokens and an answer of a: T = p + a
    blocks 0..cut are below the edits, the L - 1 - cut above it are where gradients flow; W weights in the matrices of a block
    full pass:    all T tokens through all L blocks
    cached pass:  a suffix of a tokens (the last prompt token, and the answer without its end) through the blocks above

Rows are taken as equally long, so nothing is padding. Left out, as it is below a hundredth: norms, softmax, rotary positions,
the adapter's own operations. Objectives that read the reference cost a full pass one more forward pass of the rows concerned;
the cache holds it already. Letters of shapes as in :mod:`pipelines.benchmarks.plan_shapes`.
"""

from dataclasses import dataclass
from functools import cached_property

from pipelines.benchmarks.plan_shapes import GPUS_PER_NODE, Gpu, ModelShape

__all__ = ["WAYS", "Costs", "Way", "Workload"]


@dataclass(frozen=True)
class Workload:
    """What is to be trained on, and where."""

    forget_rows: int
    """Rows to forget, each taken once an epoch."""
    retain_rows: int
    """Distinct retain rows that training meets."""
    prompt_tokens: int
    """Tokens p of a prompt, at least one."""
    answer_tokens: int
    """Tokens a of an answer, its end included."""
    batch_rows: int
    """Forget rows of a step, over all workers; as many retain rows come with them."""
    epochs: int
    """Passes over the forget rows."""
    edited_layers: tuple[int, ...]
    """Blocks that are edited, shallowest first: the cut is the first of them."""
    rank: int
    """Rank of LoReFT."""
    width_bytes: int = 2
    """Bytes of a number of the base and its cache: 2 for bfloat16, 4 for float32."""

    @property
    def step_rows(self) -> int:
        """Rows R of a step."""
        return 2 * self.batch_rows

    @property
    def row_tokens(self) -> int:
        """Tokens T of a row."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def num_steps(self) -> int:
        """Optimizer steps of a run."""
        return self.epochs * -(-self.forget_rows // self.batch_rows)


@dataclass(frozen=True)
class Way:
    """How a step is run."""

    name: str
    cached: bool
    """From the prefix cache, with the upper part of the base alone."""
    sharded: bool
    """ZeRO-3: every worker keeps its share of the base, and gathers about three blocks at a time."""


WAYS = (
    Way("full", cached=False, sharded=False),
    Way("cached", cached=True, sharded=False),
    Way("full_zero3", cached=False, sharded=True),
    Way("cached_zero3", cached=True, sharded=True),
)


@dataclass(frozen=True)
class Costs:
    """A model, a workload, a way and a number of GPUs, and all that follows from them."""

    shape: ModelShape
    gpu: Gpu
    workload: Workload
    way: Way
    workers: int
    """One on each GPU; they divide the rows of a step."""
    utilisation: float
    """Share of a GPU's peak that its products of matrices reach."""

    @property
    def blocks_above(self) -> int:
        """L - 1 - cut blocks, through which gradients flow."""
        return self.shape.num_layers - 1 - self.workload.edited_layers[0]

    @property
    def loaded_blocks(self) -> int:
        """Blocks that a worker has at all."""
        return self.blocks_above if self.way.cached else self.shape.num_layers

    @property
    def loaded_matrix_parameters(self) -> int:
        """Weights of the matrices that a worker has, or has its share of.

        Those of its blocks, and the head. A full pass has the embedding too; where it is the head itself, it counts once.
        """
        shape = self.shape
        embedding = 0 if self.way.cached or shape.shares_embedding else shape.head_parameters
        return self.loaded_blocks * shape.block_matrix_parameters + shape.head_parameters + embedding

    @property
    def loaded_vector_parameters(self) -> int:
        """Norms and biases that a worker has; ZeRO-3 leaves them whole, as gathering them costs more than they weigh."""
        return self.loaded_blocks * self.shape.block_vector_parameters + self.shape.other_parameters

    @property
    def adapter_parameters(self) -> int:
        """Weights of the adapter.

        At each edited block a LoReFT of rank r, with R (D x r), W (r x D) and b (r), and the gate `mlp_3`, D-256-64-1.
        """
        width, rank = self.shape.hidden_size, self.workload.rank
        gate = (256 * width + 256) + (64 * 256 + 64) + (64 + 1)
        return len(self.workload.edited_layers) * (2 * width * rank + rank + gate)

    @cached_property
    def step_flops(self) -> int:
        """Operations of a step over all workers; a product of an (m, k) with a (k, n) matrix is 2 m k n of them.

        Forward: 2 W a token and block, the head 2 V D an answer token, attention 4 H E for each query and key (two products).
        Backward goes through the blocks above and the head. No weight learns, so each product has one gradient and not two:
        as many operations as forward. Attention learns nothing either but has gradients on both sides: twice its forward.
        """
        work = self.workload
        queries, keys = (work.answer_tokens if self.way.cached else work.row_tokens), work.row_tokens
        keys -= 1 if self.way.cached else 0  # the end of an answer predicts nothing
        forward = self._forward(self.loaded_blocks, queries, keys) + self._head()
        backward = self._forward(self.blocks_above, queries, keys, attention_factor=2) + self._head()
        return work.step_rows * (forward + backward)

    @cached_property
    def build_flops(self) -> int:
        """Operations of building the cache: a forward pass of the whole base over every distinct row."""
        work = self.workload
        row = self._forward(self.shape.num_layers, work.row_tokens, work.row_tokens) + self._head()
        return (work.forget_rows + work.retain_rows) * row

    def _forward(self, blocks: int, queries: int, keys: int, attention_factor: int = 1) -> int:
        products = 2 * self.shape.block_matrix_parameters * queries
        attention = 4 * self.shape.query_size * queries * keys
        return blocks * (products + attention_factor * attention)

    def _head(self) -> int:
        return 2 * self.shape.head_parameters * self.workload.answer_tokens

    @property
    def rows_per_worker(self) -> int:
        """Rows of a step that a worker runs, at the most."""
        return -(-self.workload.step_rows // self.workers)

    @property
    def weight_bytes(self) -> float:
        """Bytes of the base's weights that a worker keeps between two steps: with ZeRO-3 its share of every matrix."""
        shards = self.workers if self.way.sharded else 1
        return self.workload.width_bytes * (self.loaded_matrix_parameters / shards + self.loaded_vector_parameters)

    @property
    def live_parameters(self) -> int:
        """Weights that ZeRO-3 may have gathered at a time, as :func:`pipelines.deepspeed_engine.zero3_config` sets it.

        That of three blocks, each taken as 4 D^2 + 3 D F: what is gathered ahead of its use counts as well.
        """
        width, inner = self.shape.hidden_size, self.shape.inner_size
        return 3 * (4 * width**2 + 3 * width * inner)

    @property
    def gathered_bytes(self) -> int:
        """Bytes that ZeRO-3 has gathered at its worst: its limit, and the head, as a matrix is fetched whole while any room is left."""
        if not self.way.sharded or self.workers == 1:
            return 0
        return self.workload.width_bytes * (self.live_parameters + self.shape.head_parameters)

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the adapter: weights, gradients and two moments in float32, on every worker."""
        return 4 * 4 * self.adapter_parameters

    @property
    def saved_bytes(self) -> int:
        """Bytes that autograd keeps of a worker's rows for the backward pass, without the logits.

        A frozen matrix keeps nothing: its gradient needs the weight alone. So a block keeps, of each token, the input of two
        norms in float32 (8 D bytes), queries and attention's output (2 H E numbers), three tensors of the MLP (3 F: before
        and after its activation, and what that is multiplied with), and of each key the key and the value, which a masked
        attention repeats for every query head (2 H E). The final norm keeps 4 D bytes of each token that it sees.
        """
        work, shape = self.workload, self.shape
        queries = work.answer_tokens if self.way.cached else work.row_tokens
        keys = work.row_tokens - 1 if self.way.cached else work.row_tokens
        numbers = queries * (2 * shape.query_size + 3 * shape.inner_size) + keys * 2 * shape.query_size
        block = 8 * shape.hidden_size * queries + work.width_bytes * numbers
        return self.rows_per_worker * (self.blocks_above * block + 4 * shape.hidden_size * queries)

    @property
    def logits_bytes(self) -> int:
        """Bytes that the loss takes at its worst, for each answer token and each of V: 8 for log-probabilities and their gradient
        in float32, and a copy in the base's own precision where that is another."""
        copy = 0 if self.workload.width_bytes == 4 else self.workload.width_bytes
        return self.rows_per_worker * self.workload.answer_tokens * self.shape.vocab_size * (8 + copy)

    @property
    def memory_bytes(self) -> float:
        """All that a worker holds at its worst; what the device's libraries take comes on top."""
        return self.weight_bytes + self.gathered_bytes + self.adapter_bytes + self.saved_bytes + self.logits_bytes

    @property
    def fits(self) -> bool:
        """Whether that is at most nine tenths of the GPU's memory: the rest is for contexts, buffers and fragments."""
        return self.memory_bytes <= 0.9 * self.gpu.memory_bytes

    @property
    def gathered_step_bytes(self) -> int:
        """Bytes of the base that every worker has gathered by the end of a step, its own shares included.

        Each matrix once for the forward pass, and those of the blocks above and of the head again for the backward pass; but
        where the one turns into the other, what is still gathered stays, and that is as much as may be gathered at a time.
        """
        if not self.way.sharded or self.workers == 1:
            return 0
        again = max(0, self._backward_parameters - self.live_parameters)
        return self.workload.width_bytes * (self.loaded_matrix_parameters + again)

    @property
    def _backward_parameters(self) -> int:
        """Weights of the matrices that gradients flow through."""
        return self.blocks_above * self.shape.block_matrix_parameters + self.shape.head_parameters

    @property
    def received_bytes(self) -> float:
        """Bytes that a worker receives in a step.

        Of what is gathered, all but its own N-th part; of the adapter's gradient, summed in a ring, 2 (N - 1) / N in float32.
        """
        others = (self.workers - 1) / self.workers
        return others * (self.gathered_step_bytes + 2 * 4 * self.adapter_parameters)

    @property
    def cached_row_bytes(self) -> int:
        """Bytes of one row in the cache.

        Keys and values (2 K E numbers) of p - 1 tokens in every block above the cut; the output of the block at the cut (D
        numbers) and the reference's loss (4 bytes) of a tokens.
        """
        work, shape = self.workload, self.shape
        prefix = (work.prompt_tokens - 1) * self.blocks_above * 2 * shape.key_value_size * work.width_bytes
        return prefix + work.answer_tokens * (shape.hidden_size * work.width_bytes + 4)

    @property
    def read_step_bytes(self) -> int:
        """Bytes of the cache that a step reads, over all workers."""
        return self.workload.step_rows * self.cached_row_bytes if self.way.cached else 0

    @property
    def cache_bytes(self) -> int:
        """Bytes of the whole cache, every row with a prompt of its own."""
        return (self.workload.forget_rows + self.workload.retain_rows) * self.cached_row_bytes if self.way.cached else 0

    @property
    def compute_seconds(self) -> float:
        """A step's operations at the stated share of the peak."""
        return self._seconds_of(self.step_flops)

    @property
    def weight_seconds(self) -> float:
        """Time to read the weights out of the GPU's memory, forward and, above the cut, backward: what a small batch waits for."""
        forward = self.loaded_blocks * self.shape.block_matrix_parameters + self.shape.head_parameters
        return self.workload.width_bytes * (forward + self._backward_parameters) / self.gpu.memory_bytes_per_second

    @property
    def network_seconds(self) -> float:
        """Time to receive what a worker receives, at the links' full bandwidth.

        Inside a node it comes over NVLink. Between M nodes, each node has to receive (M - 1) / M of it once, over the network of
        its GPUs together, and passes it on inside. The slower of the two counts.
        """
        nodes = -(-self.workers // GPUS_PER_NODE)
        everything = self.received_bytes * self.workers / max(1, self.workers - 1)
        between = everything * (nodes - 1) / nodes / (GPUS_PER_NODE * self.gpu.network_bytes_per_second)
        return max(self.received_bytes / self.gpu.link_bytes_per_second, between)

    @property
    def storage_seconds(self) -> float:
        """Time to read a worker's part of the rows from disk. Rows that the system still has in memory take none."""
        return self.read_step_bytes / self.workers / self.gpu.disk_bytes_per_second

    @property
    def parts_seconds(self) -> dict[str, float]:
        """The four of them, by name."""
        return {
            "compute": self.compute_seconds,
            "weights": self.weight_seconds,
            "network": self.network_seconds,
            "storage": self.storage_seconds,
        }

    @property
    def step_seconds(self) -> float:
        """A step whose parts overlap as well as they can: as long as the longest."""
        return max(self.parts_seconds.values())

    @property
    def bound_by(self) -> str:
        """The part that a step waits for."""
        return max(self.parts_seconds, key=lambda part: self.parts_seconds[part])

    @property
    def build_fits(self) -> bool:
        """Whether one GPU holds the whole base: what builds a cache, and what scores, runs it in one process and shards nothing."""
        return self.workload.width_bytes * self.shape.num_parameters <= 0.9 * self.gpu.memory_bytes

    @property
    def build_seconds(self) -> float:
        """Time to build the cache, computed and written; 0 without one."""
        if not self.way.cached:
            return 0.0
        return max(self._seconds_of(self.build_flops), self.cache_bytes / self.workers / self.gpu.disk_bytes_per_second)

    @property
    def train_seconds(self) -> float:
        """Time of all steps of a run."""
        return self.workload.num_steps * self.step_seconds

    def gpu_hours(self, trials: int = 1) -> float:
        """GPU hours of one cache and so many runs on it."""
        return self.workers * (self.build_seconds + trials * self.train_seconds) / 3600

    def _seconds_of(self, flops: int) -> float:
        return flops / (self.workers * self.utilisation * self.gpu.flops_per_second)
