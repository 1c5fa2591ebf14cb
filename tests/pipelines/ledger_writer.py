"""Another process that adds requests to a ledger, as many as it is told, when it is told to begin."""

import sys
from pathlib import Path

from grun.config import Recipe
from pipelines.ledger_store import LedgerStore


def main(output: str, name: str, count: str) -> None:
    store = LedgerStore.open(Recipe.parse({"output": output}))
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(count)):
        forget = {"kind": "jsonl", "location": f"{name}.jsonl", "num_records": 1, "digest": f"{ord(name):032x}{number:032x}"}
        store.append("add", f"{name}{number}", details={"forget": forget})


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main(*sys.argv[1:])
