"""A gate: a build passes if its name follows a pattern and its output has a licence file."""

import fnmatch
import re

import hookrun
import wit_world.exports
from componentize_py_types import Err
from wit_world.exports import post_build
from wit_world.imports import nix_store

LICENCE = re.compile(r"(licen[cs]e|copying|notice|unlicense)([-._].*)?", re.IGNORECASE)

# Directories of an output that are searched for a licence, two levels deep.
DIRECTORIES = ["share/licenses", "share/doc", ""]
DEPTH = 2


def entries(path, relative):
    """Returns the entries of a directory; none if there is no such directory."""
    try:
        return nix_store.list_directory(path, relative)
    except Err as error:
        if error.value.kind in ("not-found", "invalid"):
            return []
        raise


def has_licence(path, relative, depth):
    for entry in entries(path, relative):
        if entry.kind == "regular" and LICENCE.fullmatch(entry.name):
            return True
        below = f"{relative}/{entry.name}" if relative else entry.name
        if entry.kind == "directory" and depth > 1 and has_licence(path, below, depth - 1):
            return True
    return False


def gate(event):
    config = hookrun.config()
    if any(fnmatch.fnmatchcase(event.name, pattern) for pattern in config.get("exempt", [])):
        return f"{event.name} is exempt"
    pattern = config.get("name", ".*")
    if not re.fullmatch(pattern, event.name):
        raise hookrun.Failure(
            f"the name {event.name} does not match `{pattern}`; rename the package, or add it to "
            "`exempt` of the gate"
        )
    outputs = [output.path for output in event.outputs]
    if config.get("licence", True) and not any(
        has_licence(path, directory, DEPTH) for path in outputs for directory in DIRECTORIES
    ):
        raise hookrun.Failure(
            f"{event.name} has no licence file; install one to share/licenses/{event.name}, or add "
            "the package to `exempt` of the gate"
        )
    return f"{event.name} passes"


class PostBuild(wit_world.exports.PostBuild):
    def handle(self, event):
        return hookrun.handle(post_build, gate, event)
