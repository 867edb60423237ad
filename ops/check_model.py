"""Finds what a run's actors would refuse of its checkpoints, before the run has a folder."""

from pathlib import Path

from configs.schema import Settings
from configs.teachers import LocalTeacher
from runtime import template_process
from runtime.checkpoint_files import inspect
from runtime.errors import BadInput
from runtime.finite_weights import check_finite


def check_models(settings: Settings) -> None:
    """Raises BadInput for a checkpoint, the model's or a local teacher's, that an actor could not load
    or train as the settings say. `settings.model.path` is a local folder by now.
    """
    import mlx.core as mx

    from policies.frozen import model_of
    from policies.load import check_loads

    folder = Path(settings.model.path)
    _check_weights(folder)
    policy = check_loads(settings.model, folder)
    facts = settings.facts
    if facts.generation is not None:
        from policies.evolution.perturbation import perturbation
        from policies.evolution.population import check_kinds

        noise = perturbation(facts.generation, policy)
        if noise.rank:
            check_kinds(policy, noise)
    del policy
    for name, teacher in facts.teachers.items():
        if isinstance(teacher, LocalTeacher):
            try:
                _check_weights(Path(teacher.path))
                check_loads(model_of(teacher), Path(teacher.path), frozen=True)
            except BadInput as error:
                raise BadInput(f"algorithm.teachers.{name}: {error}") from None
    mx.clear_cache()


def _check_weights(folder: Path) -> None:
    for shard in inspect(folder).shards:
        check_finite(shard)


def end_helpers() -> None:
    """Ends the process that rendered templates for the checks. The present process lives on, for the
    whole run.
    """
    template_process.close()
