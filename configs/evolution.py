"""What evolution strategies ask of the settings together, and what deserves a warning."""

from collections.abc import Iterator

from configs.schema import Es, Jsonl, Optimizer, PlainStep, Sampling, Settings

FAR_ABOVE = 2.0
"""Alpha above so many sigma: measured on small models, 1 to 2 learns, 5 degrades, 15 destroys."""
RANK_SPREAD = 12**-0.5
"""Standard deviation of centred ranks; of the other shapings it is about 1."""


def problems(es: Es, settings: Settings) -> Iterator[str]:
    """Every contradiction, a sentence each that names the keys."""
    if es.antithetic and es.population % 2:
        yield (
            f"algorithm.population = {es.population} needs to be even with algorithm.antithetic = true: "
            "members come in pairs"
        )
    if es.layers == 0:
        yield "algorithm.layers = 0 perturbs nothing: use -1 for all blocks, or a number of them"
    if settings.actors.samplers > es.population:
        yield (
            f"actors.samplers = {settings.actors.samplers} needs at least as many "
            f"algorithm.population, got {es.population}: the others would idle"
        )
    if settings.sampling.temperature != Sampling().temperature:
        yield (
            "sampling.temperature has no effect: members answer at algorithm.temperature, "
            "evaluation at eval.temperature"
        )
    if isinstance(es.update, PlainStep) and settings.optimizer != Optimizer():
        yield 'optimizer has no effect with algorithm.update.name = "plain": use "adamw"'
    yield from _fitness(es, settings)


def _fitness(es: Es, settings: Settings) -> Iterator[str]:
    task = settings.task
    if es.fitness == "reward":
        if isinstance(task, Jsonl) and not task.reward:
            yield (
                'algorithm.fitness = "reward" needs task.reward, a Python file that scores answers'
            )
        return
    if isinstance(task, Jsonl) and not task.response:
        yield (
            'algorithm.fitness = "log_likelihood" needs task.response, the column with the answers'
        )
    if es.temperature != 0.0:
        yield (
            'algorithm.temperature has no effect with algorithm.fitness = "log_likelihood": '
            "nothing is sampled"
        )


def warnings(es: Es) -> Iterator[str]:
    """What can run and will probably not learn."""
    if not isinstance(es.update, PlainStep):
        return
    spread = RANK_SPREAD if es.shaping == "centered_ranks" else 1.0
    ratio = es.update.alpha * spread / es.sigma
    if ratio > FAR_ABOVE:
        yield (
            f"algorithm.update.alpha = {es.update.alpha:g} is far above algorithm.sigma = {es.sigma:g}: "
            f"a step goes {ratio:.1f} sigma where up to {FAR_ABOVE:g} was seen to learn"
        )
