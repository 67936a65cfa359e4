"""Takes personal data and secrets out of what is shown of a row.

Broader than the checks of `private`: what only looks like a number to call or a key is not worth showing either.
"""

import re

_PATTERNS = (
    (re.compile(r"-----BEGIN .*", re.DOTALL), "[key]"),
    (re.compile(r"[^\s@<>\"'(]+@[^\s@<>\"')]+\.\w+"), "[email]"),
    (
        re.compile(r"(?i)((?:password|passwd|pwd|passphrase|secret|token|api[_ -]?key)\w*\W{1,4})[^\s,;]+"),
        r"\1[secret]",
    ),
    (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,}(?: ?[A-Z0-9]{1,4})?\b"), "[account]"),
    (re.compile(r"(?=[\w+/=.-]*\d)(?=[\w+/=.-]*[A-Za-z])[\w+/=.-]{20,}"), "[key]"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b"), "[address]"),
    (re.compile(r"\+?\(?\d(?:[ ()./-]{0,2}\d){6,}"), "[number]"),
    (re.compile(r"\b[A-Z0-9]{9,}\b(?<=\d[A-Z])|\b(?=[A-Z]*\d)[A-Z0-9]{9,}\b"), "[number]"),
)


def masked(text: str) -> str:
    """The text with e-mail addresses, numbers of seven digits and more, addresses, keys and passwords replaced."""
    for pattern, name in _PATTERNS:
        text = pattern.sub(name, text)
    return text
