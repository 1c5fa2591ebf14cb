"""What breaks, what a user sees of it, and that nothing is lost: tests that kill real processes and fill real disks.

    inject/      makes a process of ours fail at a chosen place; production code knows nothing of it
    injection.py what is to fail, where and when
    commands.py  a command of ours in processes of its own, and what it left behind
    table.py     the rows of the fault table in RESULTS.md, each beside the test that makes it

Every row names its safeguard. `python -m tests.faults.broken` breaks one after another, and demands that its test fails.
"""
