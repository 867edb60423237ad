"""The learning rate of an update: a warm-up, then a schedule over the rest of the run."""

import math

from configs.run import Optimizer


def learning_rate(settings: Optimizer, update: int, updates: int) -> float:
    """Returns the learning rate of update number `update`, counted from 0, in a run of `updates`."""
    if update < settings.warmup_steps:
        return settings.learning_rate * (update + 1) / settings.warmup_steps
    span = max(updates - settings.warmup_steps, 1)
    done = min((update - settings.warmup_steps) / span, 1.0)
    final = settings.final_share
    match settings.schedule:
        case "constant":
            share = 1.0
        case "linear":
            share = 1 - (1 - final) * done
        case "cosine":
            share = final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
    return settings.learning_rate * share
