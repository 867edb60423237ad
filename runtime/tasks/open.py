"""Opens a task by its settings; only this file knows all tasks."""

from pathlib import Path

from configs import tasks
from runtime.tasks.addition import open_addition
from runtime.tasks.chain import open_chain
from runtime.tasks.countdown import open_countdown
from runtime.tasks.gsm8k import Gsm8kTask
from runtime.tasks.prompt import Task
from runtime.tasks.rows import RowsTask
from runtime.tasks.sorting import open_sorting


def open_task(
    settings: tasks.Task, seed: int, reward_timeout_s: float = 10.0, reward_log: Path | None = None
) -> Task:
    """Returns the task, ready to give prompts and to judge answers.

    Starts a process if the settings name a reward file, which `close` ends; its output goes to `reward_log`.
    Raises BadInput if the settings, a data file or the reward file cannot be used.
    """
    match settings:
        case tasks.Addition():
            return open_addition(settings, seed)
        case tasks.Sorting():
            return open_sorting(settings, seed)
        case tasks.Countdown():
            return open_countdown(settings, seed)
        case tasks.Chain():
            return open_chain(settings, seed)
        case tasks.Gsm8k():
            return Gsm8kTask(settings, seed)
        case tasks.Jsonl():
            return RowsTask(settings, seed, reward_timeout_s, reward_log)
