"""Personal data in any turn of a row: addresses, numbers to call, to pay by, to be known by.

A model repeats what it was trained on (Carlini et al. 2021, arXiv:2012.07805). A cheap look for digits and @ finds the
candidates of a whole chunk; kept libraries decide (phonenumbers, python-stdnum), by check digits and numbering plans.
What is reserved for examples does not count. Secrets have their own room.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import phonenumbers
from stdnum import iban, luhn
from stdnum.br import cpf
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.fr import nir
from stdnum.gb import nhs
from stdnum.it import codicefiscale
from stdnum.nl import bsn
from stdnum.pl import pesel
from stdnum.us import ssn

from distributed_ft.data.audit.rows import Rows, Table
from distributed_ft.data.findings import Finding

_EMAIL_BEFORE = re.compile(r"[\w.%+-]+\Z")
_EMAIL_AFTER = re.compile(r"((?:[\w-]+\.)+[A-Za-z]{2,})")
_EXAMPLE_DOMAIN = re.compile(
    r"(?:^|\.)(?:example\.\w+|[\w-]+\.(?:example|test|invalid|localhost|local)|test\.com|domain\.com|email\.com|company\.com"
    r"|yourdomain\.\w+|yourcompany\.\w+|acme\.\w+|contoso\.com|fabrikam\.com)\Z",
    re.IGNORECASE,
)
_EXAMPLE_NAME = re.compile(
    r"(?:you|your[._-]?\w*|name|user(?:name)?|email|first\.?last|no-?reply|git)\Z", re.IGNORECASE
)
# Of RE2: one of these is in every row with personal data.
_WORTH_A_LOOK = (
    r"@|\p{Nd}[\p{Nd} ().\-/\x{a0}]{5,}\p{Nd}"
    r"|[A-Z](?:[A-Z]D{2} ?[A-Z0-9]{4}|[A-Z]{5}DD|D{7}[A-Z])".replace("D", r"[0-9\x{80}-\x{10ffff}]")  # or a digit
)
_DIGITS = re.compile(r"\d[\d ().\-/\u00a0]{5,40}\d[A-Z]?\b")
_LETTERED = re.compile(
    r"[A-Z](?:[A-Z]\d{2}[ ]?(?:[A-Z0-9]{4}[ ]?){2,7}[A-Z0-9]{0,4}"
    r"|[A-Z]{5}\d\d[A-Z]\d\d[A-Z]\d{3}[A-Z]|(?<=[XYZ])\d{7}[A-Z])\b"
)
_SIGN = re.compile(r"[+(]{1,2}\Z")
_NORTH_AMERICAN = re.compile(r"(?:\+?1[ .-]?)?(?:\(\d{3}\)[ .-]?|\d{3}[ .-])\d{3}[ .-]\d{4}")
_RESERVED_PHONE = re.compile(r"555\D?\d{4}\Z|5555|79460\d{3}\Z|1632960\d{3}\Z|7700900\d{3}\Z|1234567|12345678")
_CALLED = re.compile(
    r"\b(?:(?:tele|cell|i)?phones?|telefon\w*|mobile|cell|tel|call|fax|reach|whatsapp|sms|handy|anruf\w*|ruf|teléfono|móvil"
    r"|téléphone|appele[rz])\b"  # in lower case
)
_REGIONS = ("FR", "DE", "NL", "AU", "ES", "IT", "GB", "IN", "US")  # first those whose plan most numbers fit
_PLAIN = (33, 49, 31)  # calling codes of the first three: there only a 0 may stand before a number
_IP = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])")
_VERSION = re.compile(r"(?:version|release|firmware|build|v|ver\.?|section|chapter|§)\s*\Z", re.IGNORECASE)
_PUBLIC_SERVERS = ("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "1.2.3.4")
_TEST_CARDS = ("4111111111111111", "4242424242424242", "5555555555554444", "378282246310005", "6011111111111117",
               "4012888888881881", "5105105105105100", "4000000000000002", "4532015112830366")  # fmt: skip
_TEST_ACCOUNTS = (
    "GB82WEST12345698765432",
    "DE89370400440532013000",
    "FR1420041010050500013M02606",
    "GB29NWBK60161331926819",
)
# What a number is called, and the check of its digits: a number alone fits many plans.
_NAMED = (
    (re.compile(r"\bNHS\b", re.IGNORECASE), nhs),
    (re.compile(r"\bsteuer-?(?:id|identifikation)|\bIdNr\b|\btax id", re.IGNORECASE), idnr),
    (re.compile(r"\bNIR\b|sécurité sociale|numéro de sécu", re.IGNORECASE), nir),
    (re.compile(r"\bBSN\b|burgerservice", re.IGNORECASE), bsn),
    (re.compile(r"\bPESEL\b", re.IGNORECASE), pesel),
    (re.compile(r"\bCPF\b", re.IGNORECASE), cpf),
    (re.compile(r"\bSSN\b|social security", re.IGNORECASE), ssn),
)
_NAME = re.compile(  # of any of them, in lower case
    r"\b(?:nhs|steuer|idnr|tax id|nir|bsn|pesel|cpf|ssn)|sécu|burgerservice|social security"
)
_DATE = re.compile(r"(?:19|20)\d\d([-/.])\d{1,2}\1\d{1,2}(?!\d)|\d{1,2}([-/.])\d{1,2}\2(?:19|20)\d\d(?!\d)")


@dataclass(frozen=True, slots=True)
class Private:
    """Of a chunk: by row, what kinds of personal data it holds."""

    kinds: dict[int, str]


def look(rows: Rows) -> Private:
    kinds: dict[int, str] = {}
    for row in rows.holding(_WORTH_A_LOOK):
        if kind := next(_found(rows.texts[row]), None):
            kinds[row] = kind
    return Private(kinds)


def _found(text: str) -> Iterator[str]:
    at = text.find("@")
    while at >= 0:
        if _is_email(text, at):
            yield "e-mail address"
        at = text.find("@", at + 1)
    for match in _DIGITS.finditer(text):
        before = text[max(match.start() - 40, 0) : match.start()]
        sign = _SIGN.search(before)
        if kind := _number((sign[0] if sign else "") + match[0], before):
            yield kind
    for match in _LETTERED.finditer(text):
        whole = match.start() == 0 or not text[match.start() - 1].isalnum()
        if whole and (kind := _lettered(match[0])):
            yield kind


def _is_email(text: str, at: int) -> bool:
    name = _EMAIL_BEFORE.search(text, max(at - 64, 0), at)
    domain = _EMAIL_AFTER.match(text, at + 1, at + 128)
    if name is None or domain is None:
        return False
    if text[max(name.start() - 3, 0) : name.start()].endswith("://"):
        return False
    return not _EXAMPLE_DOMAIN.search(domain[0]) and not _EXAMPLE_NAME.fullmatch(name[0])


def _number(text: str, before: str) -> str:
    """What kind of number it is; nothing: none that belongs to a person."""
    digits = "".join(filter(str.isdecimal, text))
    if _DATE.match(text):
        return ""
    if text.count(".") == 3:
        address = _IP.search(text)
        if address is not None:
            return "IP address" if _is_public(address[0]) and not _VERSION.search(before) else ""
    if len(digits) in (8, 9, 11) and (kind := _by_its_form(text.strip())):
        return kind
    if len(digits) >= 9 and _NAME.search(before.lower()):
        for name, plan in _NAMED:
            if name.search(before) and plan.is_valid(digits):
                return f"national id ({plan.__name__.rsplit('.', 1)[1].upper()})"
    if _is_card(digits, text):
        return "payment card number"
    return "telephone number" if _is_phone(text.strip(), digits, before) else ""


def _by_its_form(text: str) -> str:
    if re.fullmatch(r"\d{3}-\d{2}-\d{4}", text) and ssn.is_valid(text):
        return "social security number"
    if re.fullmatch(r"\d{3}\.\d{3}\.\d{3}-\d{2}", text) and cpf.is_valid(text):
        return "national id (CPF)"
    return "national id (DNI)" if re.fullmatch(r"\d{8}-?[A-Z]", text) and dni.is_valid(text) else ""


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global and not address.endswith(".0") and address not in _PUBLIC_SERVERS
    except ValueError:
        return False


def _is_card(digits: str, text: str) -> bool:
    if not 14 <= len(digits) <= 16 or digits[0] not in "3456" or digits in _TEST_CARDS or len(set(digits)) < 4:
        return False
    grouped = re.fullmatch(r"\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{4,5}|\d{14,16}", text.strip())
    return grouped is not None and bool(luhn.is_valid(digits))


def _is_phone(text: str, digits: str, before: str) -> bool:
    if not 8 <= len(digits) <= 15 or _RESERVED_PHONE.search(digits):
        return False
    if before[-1:].isalnum() or before[-1:] in ("/", "=", "_", "#"):  # a part of a name or an address
        return False
    if text.startswith(("+", "(+")):
        return _fits(text, None)
    if american := _NORTH_AMERICAN.fullmatch(text):
        return _fits(american[0], "US")
    if not _CALLED.search(before.lower()):
        return False
    if digits[0] in "123456789":  # as it is: quickly asked
        for code in _PLAIN:
            if phonenumbers.is_valid_number(phonenumbers.PhoneNumber(code, int(digits))):
                return True
    return any(_fits(text, region) for region in _REGIONS)


def _fits(text: str, region: str | None) -> bool:
    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(text, region)))
    except phonenumbers.NumberParseException:
        return False


def _lettered(text: str) -> str:
    plain = text.replace(" ", "")
    if codicefiscale.is_valid(plain):
        return "national id (codice fiscale)"
    if nie.is_valid(plain):
        return "national id (NIE)"
    # The next word may look like a part of it: the country says how long it is.
    for end in range(len(plain), 14, -1):
        if iban.is_valid(plain[:end]):
            return "" if plain[:end] in _TEST_ACCOUNTS else "bank account (IBAN)"
    return ""


def judge(table: Table, looked: Sequence[Private]) -> list[Finding]:
    return tell(
        table,
        "pii",
        [facts.kinds for facts in looked],
        "personal data: {}; a model repeats what it was trained on; replace or remove it, or waive this if it is "
        "made up",
    )


def tell(table: Table, name: str, kinds: Sequence[dict[int, str]], message: str) -> list[Finding]:
    """One finding about the rows of all chunks; `message` names the kinds at its {}."""
    offsets = np.cumsum([0, *(len(c.lines) for c in table.chunks)])
    found = {int(o) + row: kind for facts, o in zip(kinds, offsets, strict=False) for row, kind in facts.items()}
    told = ", ".join(f"{kind} ({count:,})" for kind, count in Counter(found.values()).most_common(5))
    return table.finding(name, found, message.format(told))
