"""What a plugin needs of hookrun: its configuration, the log, and failures.

A module that is imported inside a function is not part of the component: import at the top.
"""

import json
import traceback

from componentize_py_types import Err
from wit_world.imports import config as _config
from wit_world.imports import log as _log


def config():
    """Returns the plugin's `config` table."""
    return json.loads(_config.get())


def log(level, message, **fields):
    """Writes to the log of the run, which `hookrun log` shows. `level` is a word such as `info`."""
    fields = [_log.Field(key, str(value)) for key, value in fields.items()]
    _log.write(_log.Level[level.upper()], str(message), fields)


class Failure(Exception):
    """A failure of a run. After a transient one, hookrun tries the event again later."""

    def __init__(self, message, transient=False, retry_after_ms=None):
        super().__init__(message)
        self.transient = transient
        self.retry_after_ms = retry_after_ms


def handle(types, function, event):
    """Calls a function of the event that returns a message, or a message and a dict of details.

    Whatever it raises is a failure. `types` is the module of the hook, such as
    `wit_world.exports.post_build`.
    """
    try:
        result = function(event)
        if result is None:
            raise Failure("the hook returned nothing; return a message")
        message, details = result if isinstance(result, tuple) else (result, {})
        details = [(key, str(value)) for key, value in details.items()]
        return types.Outcome(message=str(message), details=details)
    except Failure as error:
        raise Err(types.Failure(str(error), error.transient, error.retry_after_ms))
    except Err as error:
        # An error of a host call.
        value = error.value
        transient = getattr(value, "kind", "") == "transient"
        message = getattr(value, "message", str(value))
        raise Err(types.Failure(message, transient, getattr(value, "retry_after_ms", None)))
    except Exception as error:
        log("error", traceback.format_exc())
        raise Err(types.Failure(f"{type(error).__name__}: {error}", False, None))
