"""The learning rate of each update: a warm-up, then the schedule, and its last rate beyond the end."""

import pytest

from configs.run import Optimizer
from policies.optimizers.schedule import learning_rate


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"warmup_steps": 2}, [0.5, 1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 0.75, 0.5, 0.25, 0, 0]),
        ({"schedule": "linear", "final_share": 0.2}, [1, 0.8, 0.6, 0.4, 0.2, 0.2]),
        ({"schedule": "cosine"}, [1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 0]),
        ({"schedule": "cosine", "warmup_steps": 2, "final_share": 0.1}, [0.5, 1, 1, 0.55, 0.1]),
        ({"schedule": "linear", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1, 0]),
    ],
    ids=str,
)
def test_schedules(settings, rates):
    wanted = Optimizer(learning_rate=3e-4, **settings)
    found = [learning_rate(wanted, update, updates=4) for update in range(len(rates))]
    assert found == pytest.approx([3e-4 * rate for rate in rates])
