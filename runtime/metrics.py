"""The metrics that a run reports, under names that do not change.

Each metric appears in metrics.jsonl and in `status --json` under the name here, and in Ray's Prometheus
export as `ray_pippin_NAME` with a label `run`.
"""

METRICS: dict[str, str] = {
    "reward_mean": "mean reward of the step's scored answers",
    "pass_at_1": "share of the step's scored answers that passed",
    "eval_pass_at_1": "share of held-out answers that passed, at the last evaluation",
    "eval_preference_accuracy": "share of held-out pairs whose preferred answer has the higher reward",
    "eval_reward_margin": "mean implied reward of preferred less rejected held-out answers",
    "preference_accuracy": "share of the step's pairs whose preferred answer had the higher implied reward",
    "reward_margin": "mean implied reward of the step's preferred less rejected answers",
    "chosen_reward": "mean implied reward of the step's preferred answers",
    "rejected_reward": "mean implied reward of the step's rejected answers",
    "completion_tokens_mean": "mean sampled tokens of an answer",
    "stop_share": "share of answers that ended with a stop token",
    "truncated_share": "share of answers that reached the length limit",
    "zero_variance_share": "share of groups whose rewards were all the same",
    "all_passed_share": "share of groups in which every answer passed",
    "none_passed_share": "share of groups in which no answer passed",
    "failed_share": "share of answers that could not be scored",
    "sample_rounds": "rounds of sampling that the step took (dynamic sampling)",
    "staleness_versions": "weights versions between the sampler's weights and the trained ones",
    "loss": "loss of the step's last update (no sign of progress in itself)",
    "policy_gradient_loss": "the policy gradient's share of the loss",
    "kl_loss": "the share of the loss that the KL to the reference adds",
    "cross_entropy_loss": "the cross-entropy's share of the loss",
    "divergence_loss": "the share of the loss that the divergence from a teacher adds",
    "preference_loss": "the preference loss's share of the loss",
    "grad_norm": "global norm of the last update's gradient before it was scaled down",
    "learning_rate": "learning rate of the step's last update",
    "entropy": "mean entropy of the policy at the trained tokens, nats",
    "mismatch_kl": "KL from the sampler to the learner at the sampled tokens (k3 estimate), nats; with "
    "max_lag the staleness is in it",
    "mismatch_mean": "mean absolute difference of a token's log-probability between sampler and learner, "
    "nats, at the tokens that the learner's own weights sampled (no staleness); none without such tokens",
    "mismatch_max": "largest such difference of one token, nats",
    "ratio_mean": "mean probability ratio of the policy to its anchor",
    "clipped_share": "share of tokens whose ratio was clipped or masked",
    "corrected_share": "share of tokens at which the off-policy correction was bounded",
    "importance_ess": "effective share of samples under the importance weights",
    "kl_reference": "KL to the reference policy (k3 estimate), nats per token",
    "cross_entropy": "cross-entropy of the answers that are imitated, nats per token",
    "divergence": "divergence of the student from its teacher, nats per token; of sampled tokens an "
    "estimate of the reverse KL",
    "unusable_tokens": "tokens without a usable teacher output: not trained on",
    "student_share": "share of the step's rows that the student sampled (mixed distillation)",
    "one_token_answers": "answers of a teacher that are one token long",
    "fitness_std": "standard deviation of the members' fitness (evolution strategies)",
    "fitness_best": "fitness of the best member",
    "members_left_out": "members without a fitness, and their antithetic twins",
    "flat_generations": "1 if the fitness of all members, or within each pair, was equal: no update",
    "results_ignored": "answers of an earlier generation, or second ones of a member to a prompt",
    "update_norm": "norm of the step of the weights",
    "noise_norm": "norm of a member's noise: what the step is to be compared with",
    "drift_norm": "distance of the weights from the base",
    "exchanged_bytes": "bytes that take the samplers to the new weights version, and of a score for each "
    "answer; trajectories aside",
    "trained_tokens": "tokens in the loss",
    "sampler_tokens": "tokens sampled for the step",
    "sampler_tokens_per_s": "tokens sampled per second of decoding",
    "learner_tokens_per_s": "tokens (prompt and answer) trained per second of learning",
    "sampler_busy_s": "seconds that the slowest sampler worked",
    "sampler_wait_s": "seconds of the step in which the samplers had nothing to do",
    "learner_busy_s": "seconds that the learner worked",
    "learner_wait_s": "seconds of the step in which the learner had nothing to do",
    "teacher_tokens": "tokens that the teachers scored or sampled for the step",
    "teacher_tokens_per_s": "such tokens per second of the teachers' work",
    "teacher_cached_share": "share of the rows that were known from the teacher cache",
    "teacher_busy_s": "seconds that the teachers worked",
    "teacher_wait_s": "seconds of the step in which the teachers had nothing to do",
    "verifier_busy_s": "seconds that the verifiers worked",
    "verifier_wait_s": "seconds of the step in which the verifiers had nothing to do",
    "gpu_wait_s": "longest wait for the GPU lease",
    "weights_load_s": "seconds to load the weights version in the slowest sampler",
    "step_seconds": "wall-clock of the step",
    "sampler_memory_bytes": "peak memory that MLX held in a sampler",
    "learner_memory_bytes": "peak memory that MLX held in the learner",
    "teacher_memory_bytes": "peak memory that MLX held in a teacher",
}


class Meter:
    """Collects numbers of one step by name."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.failure = ""
        """A sentence on the first row without teacher outputs."""

    def add(self, name: str, value: float) -> None:
        """Adds a value to the sum of that name."""
        self.values[name] = self.values.get(name, 0.0) + value

    def top(self, name: str, value: float) -> None:
        """Keeps the largest value of that name."""
        self.values[name] = max(self.values.get(name, value), value)


def mean(values: list[float]) -> float:
    """Returns the mean; 0 for an empty list."""
    return sum(values) / len(values) if values else 0.0
