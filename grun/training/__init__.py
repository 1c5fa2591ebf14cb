"""Training one adapter on a frozen base: the loop, the step, the engine, checkpoints."""

from grun.training.callbacks import Callback, Progress, StopTraining
from grun.training.checkpoint import Checkpoints, Found, load_checkpoint, save_checkpoint
from grun.training.engine import Engine, TorchEngine
from grun.training.health import GateValues, gate_flags, gradient_flags
from grun.training.loop import FitResult, fit
from grun.training.optimizer import AdapterOptimizer
from grun.training.rows import TrainingRows, environment_records, forget_answers, preferred_answers, training_rows
from grun.training.spool import MetricsSpool, SpoolLine, read_spool_lines, whole_steps
from grun.training.task import Task, build_task

__all__ = [
    "AdapterOptimizer",
    "Callback",
    "Checkpoints",
    "Engine",
    "FitResult",
    "Found",
    "GateValues",
    "MetricsSpool",
    "Progress",
    "SpoolLine",
    "StopTraining",
    "Task",
    "TorchEngine",
    "TrainingRows",
    "build_task",
    "environment_records",
    "fit",
    "forget_answers",
    "gate_flags",
    "gradient_flags",
    "load_checkpoint",
    "preferred_answers",
    "read_spool_lines",
    "save_checkpoint",
    "training_rows",
    "whole_steps",
]
