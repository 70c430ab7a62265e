"""The name that ``cmm.torch.glue_tasks`` had in 0.1.0."""

from cmm.torch.glue_tasks import TASKS, Task, accuracy, f1, matthews, pearson, read, spearman

__all__ = ["TASKS", "Task", "accuracy", "f1", "matthews", "pearson", "read", "spearman"]
