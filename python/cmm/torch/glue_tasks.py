"""The name that ``cmm.bert.glue_tasks`` had in 0.2.0."""

from cmm.bert.glue_tasks import TASKS, Task, accuracy, f1, matthews, pearson, read, spearman

__all__ = ["TASKS", "Task", "accuracy", "f1", "matthews", "pearson", "read", "spearman"]
