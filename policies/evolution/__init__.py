"""Evolution strategies: perturbed weights are scored, and the noise is averaged by score.

    perturbation   members and their noise: low-rank factors, explicit copies
    population     many members in one batch, each row with its own member
    fitness        scores → a coefficient for each key
    centre         the float32 master: steps, anchors, replay of a log
    precision      whether sigma and the step survive rounding to the weights' dtype

A generation, as the caller writes it:

    centre = Centre(policy, perturbation, es.update, es.anchor)
    everyone = members(seed, generation, es.population, es.antithetic)
    with Population(policy, perturbation, everyone) as population:
        Decoder(policy, slots, population.rows).run(sequences, sampling)  # sequence.member: index
    combination = combine(everyone, scores_NQ, es.shaping, perturbation.rank)
    centre.apply(combination.terms)  # logged: with the base, they are the new weights version
    centre.into(policy)
"""
