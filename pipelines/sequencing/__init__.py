"""Requests of a ledger one after another: trained, stacked, judged together, promoted; revoked and reinstated.

    data.py       what the adapter of a request trains on, among the others
    training.py   train it, and keep the adapter
    stacking.py   from adapters to a registered stack
    judging.py    score every request of a stack again
    promoting.py  move the champion, or say why not, and write down what was done
    commands.py   the subcommands of `request.py`

Every step is written to the ledger when it is done, and skipped by whoever finds it there; so a command that was killed goes on where
it stopped when it is given again.
"""
