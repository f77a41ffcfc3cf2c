"""Strip secrets from every text that is kept or shown: signatures, tokens and passwords in addresses and messages.

Secrets live in memory only: in the address that GDAL or fsspec opens, and in the pickled job that workers get.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import traceback
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

MASK = "***"
"""Stands where a secret was."""

_WORDS = r"sig|token|secret|passw|passphrase|pwd|credential|auth|bearer|jwt|hmac|session|security|private|subscription|policy|hdn"
_EXACT = (
    r"(?:.*[_.\-])?(?:pass|pw|sas|code|user|username|login|googleaccessid|key-pair-id)|.*key(?:[_.\-]?id)?|x-[a-z]+-.*"
)
_SECRET_NAME = re.compile(rf".*(?:{_WORDS}).*|{_EXACT}", re.IGNORECASE)
_CHANGING_NAME = re.compile(
    r"expires?|expiry|exp|expiration|date|algorithm|s[etvrp]|spr|sk[oetsv]|skoid|sktid|sdd|ses|sip", re.IGNORECASE
)
"""Parts of a signed query that change with the signature: Azure's, and times of expiry."""
_SECRET_VALUE = re.compile(
    r"eyJ[\w\-]{8,}.*|[0-9a-f]{32,}|(?=.*\d)(?=.*[a-z])(?=.*[A-Z])(?:[\w+/=\-.~]|%[0-9A-F]{2}){32,}"
)
"""A JSON web token, a long hexadecimal number, or 32 characters and more of mixed case with digits."""

_END = r"&;\s'\"<>\\#`"
_PLAIN = re.compile(rf"([?&;])([\w.\-\[\]%]+?)(=|%3D)([^{_END}]*)", re.IGNORECASE)
_ENCODED = re.compile(rf"(%(?:25)*(?:3F|26))([\w.\-]+)(=|%(?:25)*3D)((?:(?!%(?:25)*26)[^{_END}])*)", re.IGNORECASE)
"""The same in an address that is itself the value of a parameter, as in `/vsicurl?url=…`."""
_SCHEME = r"(?<![a-z0-9+.\-])[a-z][a-z0-9+.\-]*"
_USER = re.compile(
    rf"({_SCHEME}(?:://|%(?:25)*3A%(?:25)*2F%(?:25)*2F))(?:(?!%(?:25)*2F)[^\s/?#'\"<>\\])+(@|%(?:25)*40)", re.IGNORECASE
)
_USER_WITH_SLASH = re.compile(rf"({_SCHEME}://)[^\s/@:'\"]+:(?!\d{{1,5}}/)[^\s@:'\"]{{20,}}@", re.IGNORECASE)
"""Keys of object storage hold slashes."""
_BARE_USER = re.compile(r"(?<![\w/@.:%])[^\s/@:'\"=]+:[^\s/@'\"]+@(?=[\w.\-]+:\d)")
"""`user:pass@host:port` in messages that leave the scheme out."""
_SETTING = re.compile(
    r"((?<![?&;\w])[\"']?(?:\w*passw(?:or)?d|pwd|passphrase|\w*secret\w*|\w*access_token|\w*api_?key|account_?key|userpwd)"
    r"[\"']?\s*[=:]\s*)(\\?'[^']*'|\\?\"[^\"]*\"|[^\s'\"&;,{}\[\]]+)",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"((?:authorization|x-api-key|cookie)[\"']?\s*[:=]\s*[\"']?)(?:(?:bearer|basic)\s+)?[^\s'\",]+", re.I
)
_ELEMENT = re.compile(r"(<(?:UserPwd|ApiKey|AccessToken|Token|Password|HttpAuth)>)[^<]*(?=<)", re.IGNORECASE)


def redacted(text: str) -> str:
    """`text` with `***` in the place of every secret that an address, setting or header in it holds.

    Masked are: user and password (`user:pass@host`); query parameters of signed addresses (AWS, Azure, Google, CloudFront)
    with their dates; tokens, keys and passwords by name; values that look like a credential; passwords of connection
    strings and of GDAL's service files. The same text comes out whatever the signature is.
    """
    if not any(sign in text for sign in ("=", "@", "%", ":", "<")):
        return text
    text = _USER_WITH_SLASH.sub(rf"\1{MASK}@", text)
    text = _USER.sub(rf"\1{MASK}\2", text)
    text = _BARE_USER.sub(f"{MASK}@", text)
    text = _SETTING.sub(rf"\1{MASK}", text)
    text = _HEADER.sub(rf"\1{MASK}", text)
    text = _ELEMENT.sub(rf"\1{MASK}", text)
    for pattern in (_PLAIN, _ENCODED):
        signed = any(_SECRET_NAME.fullmatch(found[2]) for found in pattern.finditer(text))
        text = pattern.sub(lambda found, signed=signed: _parameter(found, signed), text)  # type: ignore[misc]
    return text


def _parameter(found: re.Match[str], signed: bool) -> str:
    """One query parameter, masked if it is secret, or if it changes with the signature of a signed address."""
    lead, name, equals, value = found.groups()
    secret = _SECRET_NAME.fullmatch(name) or _SECRET_VALUE.fullmatch(value)
    return f"{lead}{name}{equals}{MASK}" if secret or (signed and _CHANGING_NAME.fullmatch(name)) else found[0]


def is_redacted(text: str) -> bool:
    """Whether a secret is missing in a text that was kept."""
    return MASK in text


def cleaned(value: Any) -> Any:
    """`value` with every string in it redacted, through dictionaries, lists and tuples."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {cleaned(k): cleaned(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(cleaned(v) for v in value)
    return value


def guard_logs() -> None:
    """Redact every log record of this process, tracebacks included. For the edges: command line, workers, flows."""
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            record.msg, record.args = redacted(record.getMessage()), ()
        except (TypeError, ValueError):  # a record whose arguments do not fit: logging itself reports it
            record.args = cleaned(record.args)
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = redacted("".join(traceback.format_exception(*record.exc_info))).rstrip("\n")
        return record

    factory.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(factory)


class _Guarded:
    """A text stream that redacts what is written to it; everything else is the stream's own."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """Inside, nothing secret reaches standard output, standard error or a log: messages, tables, tracebacks, JSON.

    Left by an error, the guard stays, as Python prints the traceback afterwards.
    """
    guard_logs()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("Any", _Guarded(stream)) for stream in before)
    try:
        yield
    except SystemExit:
        sys.stdout.flush()
        sys.stdout, sys.stderr = before
        raise
    sys.stdout.flush()
    sys.stdout, sys.stderr = before
