"""Keep access tokens out of error messages and tracebacks."""

import re
import traceback

HIDDEN = "<token>"


def redact(text: str, token: str | bool | None) -> str:
    r"""Replace a token in a text, whole or in parts.

    HTTP clients quote a header that they refuse, in which other characters than letters may be escaped: a token that
    ends in a line break gives "Illegal header value b'Bearer hf_...\n'".

    Args:
        text: any text, such as that of an error.
        token: as passed to the Hub's functions; nothing is replaced if it is no string.

    """
    if not isinstance(token, str):
        return text
    forms = {token, token.strip(), repr(token)[1:-1], *re.findall(r"[\w.-]{6,}", token, re.ASCII)}
    for form in sorted(filter(str.strip, forms), key=len, reverse=True):  # the longer contain the shorter
        text = text.replace(form, HIDDEN)
    return text


def printable_cause(error: BaseException, token: str | bool | None) -> BaseException | None:
    """Return an error for `raise ... from`; None if its traceback prints the token."""
    text = "".join(traceback.format_exception(error))
    return error if redact(text, token) == text else None
