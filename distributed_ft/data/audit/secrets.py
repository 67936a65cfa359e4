"""Keys, tokens and passwords in any turn of a row, by the detectors of detect-secrets.

Its detectors cost more than a whole audit may, so each is asked only about lines that hold what its secrets begin with.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from detect_secrets.plugins.aws import AWSKeyDetector
from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
from detect_secrets.plugins.base import RegexBasedDetector
from detect_secrets.plugins.basic_auth import BasicAuthDetector
from detect_secrets.plugins.github_token import GitHubTokenDetector
from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
from detect_secrets.plugins.high_entropy_strings import Base64HighEntropyString
from detect_secrets.plugins.jwt import JwtTokenDetector
from detect_secrets.plugins.npm import NpmDetector
from detect_secrets.plugins.openai import OpenAIDetector
from detect_secrets.plugins.private_key import PrivateKeyDetector
from detect_secrets.plugins.pypi_token import PypiTokenDetector
from detect_secrets.plugins.sendgrid import SendGridDetector
from detect_secrets.plugins.slack import SlackDetector
from detect_secrets.plugins.square_oauth import SquareOAuthDetector
from detect_secrets.plugins.stripe import StripeDetector

from distributed_ft.data.audit.private import tell
from distributed_ft.data.audit.rows import Rows, Table
from distributed_ft.data.findings import Finding

_DETECTORS: tuple[tuple[tuple[str, ...], type[RegexBasedDetector]], ...] = (
    (("AKIA", "ASIA", "ABIA", "ACCA", "A3T", "aws_", "AWS_"), AWSKeyDetector),
    (("PRIVATE KEY",), PrivateKeyDetector),
    (("ghp_", "gho_", "ghs_"), GitHubTokenDetector),
    (("glpat-", "gldt-", "glrt-", "GR1348941"), GitLabTokenDetector),
    (("xox", "hooks.slack.com"), SlackDetector),
    (("T3BlbkFJ",), OpenAIDetector),
    (("k_live_",), StripeDetector),
    (("eyJ",), JwtTokenDetector),
    (("AccountKey=",), AzureStorageKeyDetector),
    (("://",), BasicAuthDetector),
    (("SG.",), SendGridDetector),
    (("pypi-",), PypiTokenDetector),
    (("_authToken",), NpmDetector),
    (("sq0csp-",), SquareOAuthDetector),
)
# Issued since the last release of detect-secrets.
_NEWER = (
    ("sk-", re.compile(r"\bsk-(?:proj-|ant-|svcacct-)?[\w-]{32,}"), "API key"),
    ("AIza", re.compile(r"\bAIza[\w-]{35}"), "Google API key"),
    ("hf_", re.compile(r"\bhf_[A-Za-z0-9]{34}\b"), "Hugging Face token"),
    ("github_pat_", re.compile(r"\bgithub_pat_\w{22,}"), "GitHub token"),
    ("npm_", re.compile(r"\bnpm_[A-Za-z0-9]{36}\b"), "npm token"),
)
_HINTS = [*(hint for hints, _ in _DETECTORS for hint in hints), *(hint for hint, _, _ in _NEWER)]
_HINTED = "|".join(map(re.escape, _HINTS))  # of RE2
_KEYWORDS = ("passw", "passp", "pwd", "secret", "token", "api", "access", "auth")  # how what _ASSIGNED finds begins
_KEYWORD = f"(?i:{'|'.join(_KEYWORDS).replace('i', '[iİ]')})"  # of RE2, which does not know that İ is an i
_ASSIGNED = re.compile(
    r"(?P<word>passw(?:or)?d|passphrase|pwd|secret|token|api[_ -]?key|access[_-]?key|auth[_-]?key)"
    r"(?P<suffix>[\w-]{0,20})[\"'`]?\s{0,3}"
    r"(?P<how>is|was|:=|=>|=|:)\s{0,3}(?:\"(?P<double>[^\"\s]{8,128})\"|'(?P<single>[^'\s]{8,128})'"
    r"|`(?P<tick>[^`\s]{8,128})`|(?P<bare>[^\s\"'`,;<>{}()\[\]$]{8,128}+(?!\()))",
    re.IGNORECASE,
)
_MADE_UP = re.compile(
    r"example|your|xxxx|\*\*\*|changeme|change_me|placeholder|dummy|redacted|<|\.\.\.|…|test|sample|12345678"
    r"|localhost|foo|password\d?$|^(?:pass|passwd|pwd|root|admin|secret)$",
    re.IGNORECASE,
)
# Names in a program, and paths: token_id_2, self.model.token, /etc/secret.
_NAME = re.compile(r"[A-Za-z]+\d?|[A-Za-z_]*\d{0,3}(?:[._/:+-]+[A-Za-z_]*\d{0,3})+")
_FEW = re.compile(r".{0,15}|[^A-Za-z]*|\D*|.*[^\w.+/=-].*")  # an unquoted token is long, of letters and digits
_AROUND = 1000  # characters of a line on either side of a hint
_ENTROPY = 2.6  # bits a character; words have less at this length


@dataclass(frozen=True, slots=True)
class Secrets:
    """Of a chunk: by row, what kind of secret it holds."""

    kinds: dict[int, str]


def look(rows: Rows) -> Secrets:
    kinds: dict[int, str] = {}
    for row in rows.holding(_HINTED):
        if kind := next(_keys(rows.texts[row]), None):
            kinds[row] = kind
    for row in rows.holding(_KEYWORD):
        if row not in kinds and _is_told(rows.texts[row]):
            kinds[row] = "password or key"
    return Secrets(kinds)


def _keys(text: str) -> Iterator[str]:
    """The kinds of what is known by its own form."""
    for hints, kind in _DETECTORS:
        detector = None
        for hint in hints:
            for line in _lines(text, hint):
                detector = detector or kind()
                if any(not _MADE_UP.search(secret) for secret in detector.analyze_string(line)):
                    yield str(detector.secret_type).lower()
    for hint, pattern, name in _NEWER:
        for line in _lines(text, hint):
            if any(not _MADE_UP.search(m[0]) and _entropy(m[0]) > 3.5 for m in pattern.finditer(line)):
                yield name


def _is_told(text: str) -> bool:
    """Whether a keyword is given a value that looks like a secret."""
    low = text.replace("İ", "I").lower()  # the only letter that would become two
    for word in _KEYWORDS:
        for at in _positions(low, word):
            match = _ASSIGNED.match(text, at, at + 200)
            if match is not None and _is_secret(match) and "public" not in low[max(at - 12, 0) : at]:
                return True
    return False


def _positions(text: str, hint: str) -> Iterator[int]:
    at = text.find(hint)
    while at >= 0:
        yield at
        at = text.find(hint, at + len(hint))


def _lines(text: str, hint: str) -> Iterator[str]:
    """The lines around a hint, a kilobyte either side at most. Of hints close to one another in a line only the first:
    one that stands there ten thousand times is looked at a few times a kilobyte."""
    done = 0
    for at in _positions(text, hint):
        if at < done:
            continue
        low, high = max(at - _AROUND, 0), at + _AROUND
        begin = max(text.rfind("\n", low, at), low - 1) + 1
        end = text.find("\n", at, high)
        done = end if end >= 0 else at + _AROUND // 2
        yield text[begin : end if end >= 0 else high]


def _is_secret(match: re.Match[str]) -> bool:
    """Whether what a keyword is given looks drawn by chance rather than like a word or a name in a program."""
    quoted = match["double"] or match["single"] or match["tick"]
    value = quoted or match["bare"].rstrip(".!?:)")
    if len(value) < 8 or _MADE_UP.search(value) or "://" in value:
        return False
    kinds = sum(any(map(test, value)) for test in (str.isupper, str.islower, str.isdigit, _is_sign))
    enough = 2 if quoted or match["how"].lower() in (":", "is", "was") else 3
    named = _NAME.fullmatch(value)
    # A word of its own in this trade: max_new_tokens: 256, image_token="[IMG]".
    mild = match["suffix"] or not any(map(str.isdigit, value)) or (not quoted and _FEW.fullmatch(value))
    if match["word"].lower() == "token" and mild:
        return False
    return kinds >= enough and named is None and _entropy(value) >= _ENTROPY


def _is_sign(character: str) -> bool:
    return not character.isalnum()


def _entropy(value: str) -> float:
    """Shannon's, bits a character."""
    return float(Base64HighEntropyString(limit=0.0).calculate_shannon_entropy(value))


def judge(table: Table, looked: Sequence[Secrets]) -> list[Finding]:
    return tell(
        table,
        "secret",
        [facts.kinds for facts in looked],
        "keys, tokens or passwords: {}; a model repeats what it was trained on; remove them, and revoke those that are "
        "real",
    )
