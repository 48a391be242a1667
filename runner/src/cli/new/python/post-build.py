"""A plugin that announces each build in the log."""

import hookrun
import wit_world.exports
from wit_world.exports import post_build


def announce(event):
    hookrun.log("info", f"{hookrun.config()['greeting']}: {event.name} was built")
    return f"{len(event.outputs)} outputs"


class PostBuild(wit_world.exports.PostBuild):
    def handle(self, event):
        return hookrun.handle(post_build, announce, event)
