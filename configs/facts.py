"""What Pippin may ask about an algorithm without knowing which one it is."""

from collections.abc import Mapping

from msgspec import Struct

from configs.perturbations import Generation
from configs.teachers import Teacher


class Facts(Struct, frozen=True, kw_only=True):
    """The facts of one algorithm under one recipe. Counts are trajectories unless they say otherwise."""

    prompts_per_step: int
    rows_per_step: int
    """Trajectories that one step learns from, at most."""
    answers_per_prompt: int = 1
    rounds: int = 1
    """Rounds of sampling in a step, at most: groups that teach nothing are replaced in later ones."""
    fresh_prompts: bool = True
    """False: every step asks the prompts of the first one."""
    updates_per_step: int = 1
    """Optimiser steps on each step's trajectories."""
    max_lag: int = 0
    """Weights versions by which sampling may be behind."""

    samples: bool = False
    """The policy, or a population around it, answers prompts to learn from."""
    generation: Generation | None = None
    """How a population of perturbed copies answers in the policy's place; None: the policy itself answers."""
    reads_data: bool = False
    """The task's own answers are learned from."""
    reads_pairs: bool = False
    """Those answers are judged already: a preferred and a rejected one, or one with a label."""
    paired: bool = True
    """Such answers are compared in pairs; false: each is judged alone."""
    needs_response: bool = False
    """Rows of a user's file need a column with the answer to imitate."""
    needs_reward: bool = False
    """The task's reward of sampled answers is learned from."""
    reward_kl: float = 0.0
    """Coefficient of the log-ratio to the reference policy that is taken off each reward."""

    gradients: bool = True
    """The learner makes backward passes; False: noise is averaged by score."""
    optimizer: bool = True
    """The optimiser of the recipe moves the weights."""
    reference: bool = False
    """Log-probabilities under the policy before training are needed."""

    teachers: Mapping[str, Teacher] = {}
    teachers_answer: bool = False
    """Teachers answer prompts, to be imitated."""
    teachers_score: bool = False
    """Teacher actors say how likely each token of an answer was."""
    hosts_teachers: bool = False
    """The learner's process loads the teachers."""
    shares_tokens: bool = False
    """Teacher and student need the same tokenizer."""
    teacher_top_k: int = 0
    """Likeliest tokens that a teacher names for each position; 0: it scores the sampled one alone."""
    teacher_temperature: float = 1.0
    """At which teachers score tokens."""
    teacher_cache_gb: float = 0.0
    compares_distributions: bool = False
    """The loss holds the logits of teacher and student for a chunk of tokens."""

    label: str = ""
    """The algorithm in a few words, for a table."""

    @property
    def asks_teachers(self) -> bool:
        """Teachers have actors of their own."""
        return self.teachers_answer or self.teachers_score
