"""The environment of foreign code: Pippin's own without variables whose name or value looks secret."""

import os
import re
from collections.abc import Mapping

from runtime.proxies import unsealed

SECRET_NAME = re.compile(
    r"TOKEN|KEY|SECRET|PASS(WORD|WD|PHRASE|FILE)|_PASS$|_PAT$|CREDENTIAL|AUTH|PRIVATE|SIGNING|BEARER|COOKIE"
    r"|JWT|WEBHOOK|_DSN$|DATABASE_URL|CONNECTION_?STRING|KUBECONFIG|NETRC"
    r"|^(RAY|AWS|AZURE|ARM|GCP|GCLOUD|GOOGLE|CLOUDSDK|GH|GITHUB|GITLAB|DOCKER|VAULT|WANDB|OPENAI|ANTHROPIC)_",
    re.IGNORECASE,
)
SECRET_VALUE = re.compile(
    r"://[^/\s:@]*:[^/\s@]+@"  # user and password in a URL
    r"|^\s*(sk-|hf_|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|AKIA|ASIA|ya29\.|eyJ|-----BEGIN)"
)
NEVER_SECRET = re.compile(r"PATH|HOME|LANG|LC_\w+|PYTHON[A-Z]+|TOKENIZERS_PARALLELISM")


def environment(ours: Mapping[str, str], root: str) -> dict[str, str]:
    """Returns the variables of `ours` for foreign code, with `root` first among the folders of its imports.

    String hashes are fixed, so that foreign code that iterates over a set is reproducible.
    """
    kept = {n: value for n, value in unsealed(ours).items() if not is_secret(n, value)}
    path = [root, *filter(None, [ours.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(path), "PYTHONHASHSEED": "0"}


def is_secret(name: str, value: str) -> bool:
    """Returns whether a variable's name or value looks like a secret."""
    if NEVER_SECRET.fullmatch(name):
        return False
    return bool(SECRET_NAME.search(name) or SECRET_VALUE.search(value))
