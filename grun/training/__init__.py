"""Training one adapter on a frozen base: the loop, the step, the engine, checkpoints."""

from grun.training.callbacks import Callback, MetricsSpool, Progress, StopTraining
from grun.training.checkpoint import Checkpoints, load_checkpoint, save_checkpoint
from grun.training.engine import Engine, TorchEngine
from grun.training.loop import FitResult, fit
from grun.training.optimizer import AdapterOptimizer
from grun.training.rows import TrainingRows, environment_records, forget_answers, preferred_answers, training_rows
from grun.training.task import Task, build_task

__all__ = [
    "AdapterOptimizer",
    "Callback",
    "Checkpoints",
    "Engine",
    "FitResult",
    "MetricsSpool",
    "Progress",
    "StopTraining",
    "Task",
    "TorchEngine",
    "TrainingRows",
    "build_task",
    "environment_records",
    "fit",
    "forget_answers",
    "load_checkpoint",
    "preferred_answers",
    "save_checkpoint",
    "training_rows",
]
