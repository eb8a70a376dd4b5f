"""Accounts of weak-to-strong as weak_to_strong.tell gives them, of made readings and tokens: how often each side is wrong is given."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from proxy_jax.metrics import account

N = 20  # pictures of a side
CODEBOOK = np.eye(6)
TRUTH = {"primary": "red", "pattern": "spots"}


def read(wrong: int) -> dict[str, list[str]]:
    """The first `wrong` of 20 pictures show another colour, always the same; the pattern is right."""
    return {"primary": ["blue"] * wrong + ["red"] * (N - wrong), "pattern": ["spots"] * N}


def tokens(wrong: int) -> account.Tokens:
    """The subject's tokens are wrong in the first `wrong` pictures, each of three wrong ones in turn; around it they are right."""
    truth = np.tile(np.repeat([0, 1], 4), (N, 1))
    drawn = truth.copy()
    drawn[:wrong, :4] = 2 + np.arange(wrong)[:, None] % 3
    return account.Tokens(drawn, truth, truth == 0)


def told(subject: str, proxies: int, arms: Mapping[str, int], misread: int = 0) -> dict[str, Any]:
    """Wrong pictures of 20: of the proxies, of each arm, and of right renderings as the probe reads them.

    Guided, one picture less of each arm is wrong. Of renderings two are, through the supervisor's codec, and one through the student's.
    """

    def of(supervisor: int, student: int) -> dict[str, Any]:
        attributes = account.attributes(subject, TRUTH, read(supervisor), read(student), rendered=read(misread))
        of_tokens = account.tokens(subject, tokens(supervisor), tokens(student), CODEBOOK)
        return {"attributes": [attribute.to_dict() for attribute in attributes], "tokens": of_tokens.to_dict()}

    drawn = {name: {arm: of(proxies, wrong - less) for arm, wrong in arms.items()} for name, less in (("arms", 0), ("guided", 1))}
    return {"pictures": N, "floor": of(2, 1), "rows": []} | drawn
