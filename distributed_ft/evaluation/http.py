"""JSON over HTTP to a server that may be busy, or down for a moment."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

from distributed_ft.errors import ConfigError, EngineError, EvaluationError

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # too busy, or down for a moment
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try; a server's Retry-After may make it longer
_LONGEST_WAIT = 120.0  # seconds, whatever the server asks for


def post(url: str, asked: dict[str, Any], *, key_env: str | None, timeout: float) -> Any:
    """The JSON that a server answers with.

    Args:
        url: of the method.
        key_env: variable of the environment that holds the key; it is sent as a bearer token.
        timeout: seconds of silence after which a try has failed; it is made again as WAITS says.

    Raises:
        ConfigError: the environment lacks the key, or the server does not take it.
        EvaluationError: the server refuses what is asked (HTTP 400, 413, 422).
        EngineError: there is no such server, method or model, or it stays out of order.
    """
    headers = {"Content-Type": "application/json", **bearer(key_env)}
    request = urllib.request.Request(url, json.dumps(asked).encode(), headers)
    for wait in (*WAITS, None):
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            if error.code not in _AGAIN or wait is None:
                raise _refused(url, error, key_env) from None
            asked_for = error.headers.get("Retry-After", "") if error.headers else ""
            pause = max(wait, min(float(asked_for), _LONGEST_WAIT)) if asked_for.isdecimal() else wait
        except ValueError:
            raise EngineError(f"{url}: the reply is not JSON; is this the address of an API?") from None
        except (OSError, http.client.HTTPException) as error:
            if wait is None:
                reason = getattr(error, "reason", None) or error
                raise EngineError(
                    f"{url}: cannot be reached: {reason}; the answers so far are kept, and the same command goes on "
                    "from there"
                ) from None
            pause = wait
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def bearer(key_env: str | None) -> dict[str, str]:
    """The header with the key. Raises ConfigError when the environment lacks it."""
    if key_env is None:
        return {}
    key = os.environ.get(key_env)
    if not key:
        raise ConfigError(f"api_key_env: {key_env}: the environment has no such variable; export it")
    return {"Authorization": f"Bearer {key}"}


def _refused(url: str, error: urllib.error.HTTPError, key_env: str | None) -> Exception:
    said = " ".join(error.read().decode(errors="replace").split())[:300]
    told = f"{url}: HTTP {error.code}: {said or error.reason}"
    if error.code in (401, 403):
        return ConfigError(f"{told}; is the key right? (api_key_env: {key_env})")
    return EvaluationError(told) if error.code in (400, 413, 422) else EngineError(told)
