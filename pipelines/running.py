"""How a verb runs to the status that the process ends with."""

import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from grun.errors import GrunError
from grun.writing import disk_error
from pipelines import console, ending

__all__ = ["run_command"]


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a verb and end the process with a status that tells the truth.

    0 done, 1 a defect of ours, 2 a mistake that the user can mend, 130 interrupted (SIGINT or SIGTERM), 141 the reader of
    the output went away; a verb may add its own.
    """
    ending.install()
    ending.leave(_status_of(main))


def _status_of(main: Callable[[], int]) -> int:
    try:
        return main()
    except (KeyboardInterrupt, SystemExit) as stop:
        # once it runs, Ray has its own handler of SIGTERM in place of ours, which exits with the number of the signal
        if isinstance(stop, SystemExit) and stop.code != signal.SIGTERM:
            raise
        return _interrupted()
    except GrunError as error:
        if ending.is_interrupted():
            return _interrupted()
        console.error(str(error))
        return 2
    except Exception as failure:  # noqa: BLE001 - the last resort of a process, which shows it in full
        if ending.is_interrupted():  # it came of what was being closed
            return _interrupted()
        if (told := disk_error(failure) or _lost_process(failure)) is not None:
            console.error(str(told))
            return 2
        console.defect(traceback.format_exc())
        console.error("this is a defect of the program, not of your input; please report it with the lines above")
        return 1


def _lost_process(failure: Exception) -> GrunError | None:
    """What it says of a process of the cluster that died; importing Ray to ask takes seconds, and is done where it is there."""
    if "ray" not in sys.modules:
        return None
    from pipelines.deaths import lost_process

    return lost_process(failure)


def _interrupted() -> int:
    console.note(ending.CONTINUES)
    return ending.INTERRUPTED
