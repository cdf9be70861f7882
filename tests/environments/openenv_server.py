"""An echo behind a server of the package OpenEnv, at the port that is given: run in an environment that has it."""

import os
import sys


def application():
    """The server's application; it needs the package."""
    from openenv.core.env_server.http_server import create_app
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, Observation, State

    class Said(Action):
        message: str

    class Heard(Observation):
        echo: str = ""
        length: int = 0

    class Echo(Environment):
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

    return create_app(Echo, Said, Heard, env_name="echo", max_concurrent_envs=2)


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(application(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
