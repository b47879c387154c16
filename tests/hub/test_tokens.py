"""An access token is never repeated: not in an error, not in its traceback, whatever the HTTP client makes of it."""

import traceback

import pytest
from kinds import gan

from hf_gdd import AutoGenerator, push_distilled_dataset
from hf_gdd.hub.redaction import HIDDEN, printable_cause, redact

TOKEN = "hf_secret"


@pytest.mark.parametrize(
    ("text", "token", "shown"),
    [
        ("no token here", TOKEN, "no token here"),
        (f"{TOKEN} and Bearer {TOKEN}!", TOKEN, f"{HIDDEN} and Bearer {HIDDEN}!"),
        (f"stripped {TOKEN},", f" {TOKEN}\n", f"stripped {HIDDEN},"),
        (repr(b"Bearer hf_secret"), TOKEN, f"b'Bearer {HIDDEN}'"),
        (repr(b"Bearer hf_secret\n"), f"{TOKEN}\n", f"b'Bearer {HIDDEN}'"),
        (repr("hf_one\nhf_two"), "hf_one\nhf_two", f"'{HIDDEN}'"),
        (repr(ValueError("hf_one\nhf_two")), "hf_one\nhf_two", f"ValueError('{HIDDEN}')"),
        (repr(repr("hf_one\nhf_two")), "hf_one\nhf_two", f"\"'{HIDDEN}\\\\n{HIDDEN}'\""),
        (repr("hf_secreté".encode()), "hf_secreté", f"b'{HIDDEN}\\xc3\\xa9'"),
        ("ab \n", "ab\n", f"{HIDDEN} \n"),
        ("nothing to hide", "", "nothing to hide"),
        ("nothing to hide", "\n", "nothing to hide"),
        ("nothing to hide", None, "nothing to hide"),
        ("the logged-in one: True", True, "the logged-in one: True"),
    ],
)
def test_a_token_is_replaced_in_every_form(text, token, shown):
    assert redact(text, token) == shown


def test_a_cause_is_printed_unless_it_names_the_token():
    harmless, telling = OSError("cut off"), OSError("cut off")
    telling.__cause__ = ValueError(f"Illegal header value b'Bearer {TOKEN}\\n'")
    assert printable_cause(harmless, f"{TOKEN}\n") is harmless
    assert printable_cause(telling, f"{TOKEN}\n") is None
    assert printable_cause(telling, None) is telling


def load(repo, token):
    AutoGenerator.from_pretrained(repo, token=token)


def push(repo, token):
    gan().push_to_hub(repo, token=token)


def push_set(repo, token):
    push_distilled_dataset(gan(), repo, ipc=1, token=token)


def failure(action, repo, token):
    """In a client: the type, text and traceback of the error."""
    try:
        action(repo, token)
    except Exception as error:
        return type(error).__name__, str(error), traceback.format_exc()
    return None


@pytest.fixture(scope="module")
def stranger(shared_client):
    return shared_client()


@pytest.mark.parametrize("token", [TOKEN, f"{TOKEN}\n", f"{TOKEN}\r\n {TOKEN}", f"{TOKEN}\x00é"], ids=ascii)
@pytest.mark.parametrize(
    ("action", "error"),
    [(load, "LoadError"), (push, "PushError"), (push_set, "PushError")],
    ids=["load", "push", "set"],
)
def test_no_error_repeats_the_token(stranger, action, error, token):
    kind, text, trace = stranger.run(failure, action, "me/generator", token)
    assert kind == error
    assert "me/generator" in text
    assert TOKEN not in text
    assert TOKEN not in trace
