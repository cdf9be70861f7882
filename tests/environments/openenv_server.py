"""An echo behind a server of the package OpenEnv, at the port that is given: run in an environment that has it."""

import os
import sys

import uvicorn
from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


class Said(Action):
    """A message."""

    message: str


class Heard(Observation):
    """What comes back."""

    echo: str = ""
    length: int = 0


class Echo(Environment):
    """Says what it is told, until it is told to end."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed=None, episode_id=None, **given):
        return Heard(echo=f"{seed} {given}")

    def step(self, action, **given):
        text = action.message
        if text == "raise":
            raise ValueError("no way")
        if text == "die":
            os._exit(3)
        echo = "x" * 2**20 if text == "flood" else text
        return Heard(echo=echo, length=len(echo), done=text == "end", reward=0.25)

    @property
    def state(self):
        return State(episode_id="0", step_count=0)


if __name__ == "__main__":
    app = create_app(Echo, Said, Heard, env_name="echo", max_concurrent_envs=2)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
