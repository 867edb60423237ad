"""How long each test file takes, in rough seconds of one idle core: the order in which workers take them.

Only the order matters: the longest begin first, so that no worker is left with a long file when the other
has nothing to do. A file that is not here takes less than two seconds, and comes last. `pytest --durations=0
FILE` measures one.
"""

REAL_RAY = (
    "tests/ops/test_supervise.py",
    "tests/ops/test_crash_loops.py",
    "tests/actors/test_ray.py",
)
"""The tests on real Ray, which come first. They look for ports and shared memory left over, so one worker has
them all.
"""

SECONDS = {
    "tests/durability/test_kill_matrix.py": 60,
    "tests/actors/test_exact_mode.py": 30,
    "tests/durability/test_pauses.py": 28,
    "tests/actors/test_distillation.py": 25,
    "tests/runtime/test_hostile_rewards.py": 24,
    "tests/durability/test_full_disk.py": 20,
    "tests/durability/test_damaged_run.py": 18,
    "tests/policies/evolution/test_population.py": 14,
    "tests/runtime/test_reward_process.py": 12,
    "tests/hostile/test_hostile_models.py": 12,
    "tests/actors/test_evolution.py": 12,
    "tests/policies/evolution/test_centre.py": 10,
    "tests/runtime/tasks/test_procedural.py": 10,
    "tests/policies/test_exact_gradient.py": 9,
    "tests/policies/test_decode.py": 8,
    "tests/runtime/test_crash_states.py": 7,
    "tests/runtime/test_corruption.py": 7,
    "tests/hostile/test_hostile_texts.py": 6,
    "tests/durability/test_starters.py": 5,
    "tests/policies/test_gradient_checkpointing.py": 4,
    "tests/runtime/test_dedup.py": 4,
    "tests/runtime/test_endpoint.py": 4,
    "tests/kernels/test_noise.py": 3,
    "tests/policies/evolution/test_perturbation.py": 3,
    "tests/runtime/test_checkpoint.py": 3,
    "tests/runtime/test_disk_full.py": 3,
    "tests/policies/test_update.py": 2,
}


def chain(file: str) -> str:
    """Returns the name of the files that one worker has together."""
    return "real Ray" if file in REAL_RAY else file


def turn(file: str) -> tuple[bool, int, str]:
    """Returns what files are sorted by: real Ray, then the longest."""
    return file not in REAL_RAY, -SECONDS.get(file, 0), file
