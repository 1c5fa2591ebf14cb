"""What `request.py` does, one file a subcommand, each with `run` and, where it has options of its own, `options`."""
