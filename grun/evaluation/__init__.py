"""Evaluation: rows of scores -> metrics -> :class:`EvalReport`. Nothing that is imported here needs torch."""

from grun.evaluation.report import EvalReport, Metric, Role
from grun.evaluation.scores import RowScore, read_rows, write_rows
from grun.evaluation.summary import ScoredSet, summarise

__all__ = ["EvalReport", "Metric", "Role", "RowScore", "ScoredSet", "read_rows", "summarise", "write_rows"]
