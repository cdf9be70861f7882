"""Environments of Gymnasium that are played by text; importing this registers them."""

import gymnasium
from gymnasium.spaces import Dict, Discrete, Text

LETTERS = Text(20, min_length=0)


class Corridor(gymnasium.Env):
    """Five places in a row, of which the last is the aim; each step costs something, and `jump` breaks it.

    Args:
        shape: `text`, `mapping` or `number`: how it shows where one is.
        start: of the numbers of the actions.
    """

    observation_space = LETTERS

    def __init__(self, shape="text", start=0):
        self.shape, self.start, self.place, self.closed = shape, start, 0, False
        self.action_space = Discrete(3, start=start)
        if shape == "mapping":
            self.observation_space = Dict({"mission": LETTERS, "place": Discrete(5)})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(0, 3))
        return self.seen(), {}

    def step(self, action):
        way = ("back", "on", "jump")[action - self.start]
        if way == "jump":
            raise RuntimeError("The floor breaks.")
        self.place = max(self.place + (1 if way == "on" else -1), 0)
        return self.seen(), 1.25 if self.place == 4 else -0.125, self.place == 4, False, {}

    def seen(self):
        text = f"You are at {self.place}."
        return {"text": text, "mapping": {"mission": text, "place": self.place}}.get(self.shape, self.place)

    def close(self):
        self.closed = True


class Echo(gymnasium.Env):
    """Says what it is told; two turns are all it takes."""

    observation_space = action_space = LETTERS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.turns = 0
        return "Say something.", {}

    def step(self, action):
        self.turns += 1
        return action, 0.5, False, self.turns == 2, {}


gymnasium.register("Corridor-v0", Corridor)
gymnasium.register("Echo-v0", Echo)
