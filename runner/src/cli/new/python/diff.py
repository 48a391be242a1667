"""A plugin that reports each difference between two builds in the log."""

import hookrun
import wit_world.exports
from wit_world.exports import diff


def report(event):
    hookrun.log("warn", f"{hookrun.config()['greeting']}: {event.name} is not reproducible")
    return f"{len(event.differences)} differences"


class Diff(wit_world.exports.Diff):
    def handle(self, event):
        return hookrun.handle(diff, report, event)
