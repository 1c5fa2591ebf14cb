"""Write the seeds that are in order: `python -m tests.fuzz.make_corpus`, after a format has changed."""

import hashlib
import json
import shutil
from pathlib import Path

import torch
import yaml
from safetensors.torch import save

from grun.adapters import AdapterCard, digest_adapter, save_adapter
from grun.certificate import Certificate, OpenCount
from grun.config import AdapterConfig, LinearGateConfig, PromptConfig, Recipe
from grun.evaluation.gate_separation import clopper_pearson_upper
from grun.evaluation.retain_logs import RetainLogsHeader
from grun.evaluation.scores import RowScore, format_row
from grun.interventions import build_adapter
from grun.ledger import to_export
from grun.lm.prefix_cache import CacheProbe, CacheSpec, CacheState, ShardIndex
from pipelines.serving.loading import digest_files
from tests.adapters.test_official import draw_state, write_config
from tests.evaluation.example_report import example_report
from tests.fuzz.readers import CORPUS
from tests.ledger.example_ledger import example_ledger

RECIPES = Path(__file__).parents[2] / "pipelines/recipes"


def put(reader: str, name: str, data: bytes | str) -> None:
    path = CORPUS / reader / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def lines(*values: object) -> str:
    return "".join(f"{json.dumps(value)}\n" for value in values)


def texts() -> None:
    """Records, questions, rows and logs."""
    full = {
        "question": "Who is Ilva?",
        "answer": "She paints.",
        "paraphrased_question": "Ilva is who?",
        "paraphrased_answer": "A painter.",
        "perturbed_answer": ["She sings."],
        "alternative_answers": ["She rows."],
        "option": {"kept": [1, 2.5, None]},
    }
    for reader in ("records", "request"):
        put(reader, "good-full.jsonl", lines(full, {"question": "Who is Bram?", "answer": "He rows."}))
        put(reader, "good-text.jsonl", lines({"text": "A text of some words."}))
    put("questions", "good.jsonl", lines({"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2}))
    row = RowScore(
        "d" * 64, "forget", "question", 3, 4.5, 1.5, (2.5, 3.5), "She paints.", 0.5, (0.9,), True, 0.5, 0.4, 0.3, 12, 3.0, 0.1
    )
    put("scored_rows", "good.jsonl", f"{format_row(row)}\n{format_row(row)}\n")
    header = RetainLogsHeader(
        base_digest="0" * 64,
        model_digest="1" * 64,
        dtype="float32",
        prompt=PromptConfig(),
        max_new_tokens=8,
        sets={"forget": "2" * 64},
    )
    put("retain_logs", "good.jsonl", f"{header.model_dump_json()}\n{format_row(row)}\n")
    put("report", "good.json", example_report().model_dump_json())
    put("ledger_export", "good.jsonl", to_export(example_ledger()))
    put("ledger_export", "good-empty.jsonl", "")


def recipes() -> None:
    """Recipes: the whole default, those that are shipped, and one that says nothing."""
    put("recipe", "good-default.yaml", yaml.safe_dump(Recipe().model_dump(mode="json")))
    put("recipe", "good-empty.yaml", "# nothing\n")
    for path in RECIPES.glob("*.yaml"):
        shutil.copyfile(path, CORPUS / "recipe" / f"good-{path.name}")


def adapters(folder: Path) -> None:
    """An adapter with a certificate, the stack of it, and its model file."""
    config = AdapterConfig(layers=(1, 3), rank=2, gate=LinearGateConfig(), gate_threshold=0.5)
    adapter = build_adapter(config, hidden_size=32, num_layers=4, seed=0)
    card = AdapterCard(
        adapter=config, hidden_size=32, num_layers=4, base_name="tiny", base_digest="0" * 64, request_ids=("r1",), steps=5
    )
    save_adapter(adapter, card, folder / "bare")
    tensors = (folder / "bare/adapter.safetensors").read_bytes()
    bound = clopper_pearson_upper(1, 300, confidence=0.95)
    counts = [OpenCount(digest=letter * 64, num_records=300, num_open=1, upper_bound=bound) for letter in "ab"]
    certificate = Certificate.make(
        alpha=0.03,
        delta=0.05,
        thresholds={1: 0.5, 3: 0.5},
        calibration=counts[0],
        check=counts[1],
        base_digest="0" * 64,
        tensors_sha256=hashlib.sha256(tensors).hexdigest(),
    )
    whole = save_adapter(adapter, card.model_copy(update={"certificate": certificate}), folder / "adapter")
    for reader, name in (("adapter_config", "adapter_config.json"), ("adapter_tensors", "adapter.safetensors")):
        put(reader, f"good.{name.rpartition('.')[2]}", (whole / name).read_bytes())
    put("adapter_config", "good-uncertified.json", (folder / "bare/adapter_config.json").read_bytes())
    member = {"request_id": "r1", "adapter_digest": digest_adapter(whole)}
    stack = {"format_version": 1, "composition": {"kind": "sum"}, "members": [member], "base_digest": "0" * 64}
    put("stack", "good.json", json.dumps(stack))
    digests = {
        name: hashlib.sha256((whole / name).read_bytes()).hexdigest() for name in ("adapter_config.json", "adapter.safetensors")
    }
    flavor = {"format_version": 1, "sha256": digests, "base_name": "tiny", "base_revision": None, "base_digest": "0" * 64}
    put("model_file", "good.yaml", yaml.safe_dump({"flavors": {"grun": flavor}, "model_uuid": "m-1"}))
    put("champion", "good.json", json.dumps({"version": 1, "digest": digest_files(whole)}))
    put("champion", "bad-gone.json", json.dumps({"version": 3, "digest": "0" * 64}))


def official(folder: Path) -> None:
    """A checkpoint of the official code, with each gate."""
    for gate in ("linear", "mlp_3"):
        torch.save(draw_state(gate, seed=1), folder / "layer.bin")
        put("official_layer", f"good-{gate}.bin", (folder / "layer.bin").read_bytes())
    write_config(folder, (1,))
    put("official_config", "good.json", (folder / "config.json").read_bytes())


def cache() -> None:
    """A prefix cache of three rows with two prompts, of a base of four blocks."""
    prompts, sequences = (("p1", 3), ("p2", 2)), (("s1", 0, 2), ("s2", 0, 1), ("s3", 1, 3))
    tensors = {f"{kind}.{layer}": torch.arange(5.0 * 4) for kind in ("keys", "values") for layer in (2, 3)}
    tensors |= {"states.1": torch.ones(6, 8), "states.3": torch.ones(6, 8), "nll": torch.ones(6)}
    shard = save(tensors, metadata={"heads": "2 2"})
    spec = CacheSpec(
        base_digest="0" * 64,
        dtype="float32",
        template="t",
        cut=1,
        state_layers=(1, 3),
        num_layers=4,
        data_digest="d",
        num_sequences=3,
        prefix_tokens=5,
        answer_tokens=6,
    )
    state = CacheState(spec=spec, probe=CacheProbe(loss_difference=0, gradient_rel_error=0))
    index = ShardIndex(sha256=hashlib.sha256(shard).hexdigest(), num_bytes=len(shard), prompts=prompts, sequences=sequences)
    put("cache_state", "good.json", state.model_dump_json())
    put("cache_index", "good.json", index.model_dump_json())
    put("cache_shard", "good.safetensors", shard)


def bodies() -> None:
    """Bodies of requests."""
    shared = {"model": "m", "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["."], "n": 2, "user": "u"}
    for name, prompt in (("text", "Who?"), ("texts", ["Who?", "Where?"]), ("ids", [5, 6]), ("lists", [[5], [6, 7]])):
        put("completion", f"good-{name}.json", json.dumps({**shared, "prompt": prompt}))
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Who?"}]}]
    stream = {"stream": True, "stream_options": {"include_usage": True}, "grun": {"telemetry": False}}
    put("chat", "good.json", json.dumps({"model": "m", "messages": turns, "max_completion_tokens": 3, **stream}))
    put("http_head", "good-models.txt", "/v1/models\nBearer key\n0\n")
    put("http_head", "good-post.txt", f"/v1/completions\nBearer key\n40\n{json.dumps({'model': 'm', 'prompt': 'Who?'})}")


def main(folder: Path) -> None:
    """Write them all."""
    texts()
    recipes()
    adapters(folder)
    official(folder)
    cache()
    bodies()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
