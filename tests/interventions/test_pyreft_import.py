"""Importing two classes of pyreft brings no more of it, until somebody asks for more."""

import subprocess
import sys


def said(code: str) -> str:
    """What an interpreter of its own prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_nothing_is_imported_or_printed_beside_what_is_needed() -> None:
    code = """
import pickle, sys
import grun.interventions
pickle.whichmodule(object, "a name that it looks for in every module")
print(sorted(name for name in sys.modules if name.startswith(("pyreft", "pyvene"))))
"""
    wanted = ["pyreft", "pyreft.interventions", "pyvene", "pyvene.models", "pyvene.models.basic_utils"]
    wanted += ["pyvene.models.intervention_utils", "pyvene.models.interventions", "pyvene.models.layers"]
    assert said(code) == f"{wanted}\n"


def test_the_packages_are_whole_for_whoever_asks() -> None:
    code = """
import grun.interventions, pyreft, pyvene
assert issubclass(pyreft.LoreftIntervention, pyvene.TrainableIntervention)
assert pyreft.LoreftIntervention is sys.modules["pyreft.interventions"].LoreftIntervention
assert pyvene.models.intervenable_base.IntervenableModel is pyvene.IntervenableModel
assert callable(pyreft.get_reft_model)
print("whole")
"""
    assert said(f"import sys\n{code}").endswith("whole\n")
