"""What `pipelines/benchmark.py` measures: one benchmark a module, listed in :mod:`pipelines.benchmarks.table`."""
