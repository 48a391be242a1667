"""A policy that prefers machines whose host name begins with `fast`."""

import re

# Part of the component, for its functions.
import hookrun
import wit_world.exports
from wit_world.exports import builder_selection


def host(uri):
    """Returns the host name in a store URI."""
    return re.split(r"[/?#]", re.sub(r"^[^:]*://", "", uri))[0].split("@")[-1]


class BuilderSelection(wit_world.exports.BuilderSelection):
    def select(self, candidate, machines, local):
        ranked = sorted(machines, key=lambda machine: not host(machine.uri).startswith("fast"))
        return builder_selection.Decision(
            action="machines",
            machines=[machine.uri for machine in ranked],
            reason="fast machines first",
            ask_again_ms=None,
        )
