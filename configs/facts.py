"""The facts about an algorithm that the rest of Pippin uses without knowing which algorithm it is."""

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
    """Most rounds of sampling in a step; later rounds replace groups that give no gradient."""
    fresh_prompts: bool = True
    """False if every step uses the prompts of the first one."""
    updates_per_step: int = 1
    """Optimiser steps on each step's trajectories."""
    max_lag: int = 0
    """Weights versions by which sampling may be behind."""

    samples: bool = False
    """True if the policy, or a population around it, answers prompts to learn from."""
    generation: Generation | None = None
    """Settings of the perturbed copies that answer in the policy's place; None: the policy itself answers."""
    reads_data: bool = False
    """True if the answers in the task's data are learned from."""
    reads_pairs: bool = False
    """True if the data's answers are judged: a preferred and a rejected one, or one with a label."""
    paired: bool = True
    """True if judged answers are compared in pairs; false if each has a label of its own."""
    needs_response: bool = False
    """True if rows of a user's file need a column with the answer to imitate."""
    needs_reward: bool = False
    """True if the task's reward of sampled answers is learned from."""
    reward_kl: float = 0.0
    """Coefficient of the log-ratio to the reference policy that is subtracted from each reward."""

    gradients: bool = True
    """True if the learner makes backward passes; false if it averages noise by score."""
    optimizer: bool = True
    """True if the optimiser of the recipe moves the weights."""
    reference: bool = False
    """True if log-probabilities under the policy before training are needed."""

    teachers: Mapping[str, Teacher] = {}
    teachers_answer: bool = False
    """True if teachers answer prompts, and the student imitates the answers."""
    teachers_score: bool = False
    """True if teacher actors give the log-probability of each token of an answer."""
    hosts_teachers: bool = False
    """True if the learner's process loads the teachers."""
    shares_tokens: bool = False
    """True if teacher and student need the same tokenizer."""
    teacher_top_k: int = 0
    """Likeliest tokens in the teacher outputs for each position; 0: only the sampled token is scored."""
    teacher_temperature: float = 1.0
    """Temperature at which teachers score tokens."""
    teacher_cache_gb: float = 0.0
    compares_distributions: bool = False
    """True if the loss holds the logits of teacher and student for a chunk of tokens."""

    label: str = ""
    """The algorithm in a few words, for a table."""

    @property
    def asks_teachers(self) -> bool:
        """Returns whether teachers have actors of their own."""
        return self.teachers_answer or self.teachers_score
