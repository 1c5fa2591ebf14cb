"""Data: records -> splits -> prompts -> batches; the embedded testbed; refusals.

Nothing is re-exported: records, splits and the testbed are read without torch, prompts and batches need it.
"""

__all__: list[str] = []
