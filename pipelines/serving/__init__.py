"""The server of the champion: one base in memory, adapters that are swapped under it, an OpenAI-compatible interface.

A request's way: `limits` (body, key, room) -> `schema` -> `prompts` -> `engine` (batched generation) -> `answers`.
Beside it, `champion` follows the registry, `loading` turns what it finds into a model, and `metrics` counts.
"""
