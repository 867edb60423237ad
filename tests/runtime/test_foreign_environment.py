"""Foreign code sees no secret of ours, and all that a program needs."""

import pytest

from runtime.foreign_environment import environment

HIDDEN = [
    "HF_TOKEN", "OPENAI_API_KEY", "openai_api_key", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AZURE_CLIENT_ID",
    "GOOGLE_APPLICATION_CREDENTIALS", "GH_ENTERPRISE", "GITHUB_PAT", "MY_PAT", "DB_PASSWORD", "PGPASSFILE",
    "SMTP_PASS", "SSH_AUTH_SOCK", "XAUTHORITY", "CLIENT_SECRET", "SLACK_WEBHOOK",
    "SENTRY_DSN", "DATABASE_URL", "KUBECONFIG", "SESSION_COOKIE", "JWT", "PRIVATE_PEM", "RAY_ADDRESS",
    "WANDB_ENTITY", "VAULT_ADDR", "AZURE_STORAGE_CONNECTION_STRING", "NPM_CONFIG__AUTH",
    "PYTHON_KEYRING_TOKEN",
]  # fmt: skip
SHOWN = [
    "PATH", "HOME", "LANG", "LC_ALL", "PYTHONUTF8", "PYTHONWARNINGS", "TMPDIR", "TOKENIZERS_PARALLELISM",
    "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "MY_SETTING", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES",
]  # fmt: skip
SECRET_VALUES = [
    "sk-proj-abcdef", "hf_abcdef", "ghp_abcdef", "github_pat_x", "glpat-x", "xoxb-1", "AKIAABCDEF",
    "eyJhbGciOi", "-----BEGIN RSA", "https://me:word@host/x", "postgres://me:word@db/x", "redis://:word@host",
]  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_a_variable_that_is_named_like_a_secret_is_hidden(name):
    assert name not in environment({name: "value"}, "root")


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_program_needs_is_kept(name):
    assert environment({name: "value"}, "root")[name] == "value"


@pytest.mark.parametrize("value", SECRET_VALUES)
def test_a_value_that_looks_like_a_secret_is_hidden_whatever_its_name(value):
    assert "HARMLESS" not in environment({"HARMLESS": value}, "root")


@pytest.mark.parametrize(
    "value", ["http://proxy:3128", "1", "", "skew", "/tmp/x@y:z", "https://host/a@b"]
)
def test_an_ordinary_value_is_kept(value):
    assert environment({"HARMLESS": value}, "root")["HARMLESS"] == value


def test_imports_come_from_pippin_first_and_hashes_are_fixed():
    kept = environment({"PYTHONPATH": "theirs", "PYTHONHASHSEED": "7"}, "root")
    assert kept == {"PYTHONPATH": "root:theirs", "PYTHONHASHSEED": "0"}
