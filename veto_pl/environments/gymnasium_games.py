"""Games of Gymnasium, played by text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from veto_pl.core.extras import require_extra
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Environment, Episode, Example, Message, Reply


@dataclass(frozen=True)
class Gymnasium(Environment):
    """An environment of Gymnasium whose observations are texts and whose actions have names.

    The agent reads the observation, where that is a text; the entry `entry` of it, where it is a mapping; or what is
    rendered, where `options` has `render_mode: ansi`. The last line of a turn names the action, in upper or lower case.
    Where actions are texts (`gymnasium.spaces.Text`), the turn as it stands is the action. A turn that is no action is
    a failed one: the agent reads which there are, and the game stands still.

    An episode is reset with the field `level` of the row as its seed, where there is one (see `Levels`), and else with
    a seed of its own. Its reward is the sum of the rewards of all steps.

    Args:
        id: of the environment; `my_package:Quest-v0` imports `my_package`, which registers it.
        actions: the names of discrete actions, in the order of their numbers.
        entry: of observations that are mappings, such as `mission`.
        options: further arguments of `gymnasium.make`.

    Raises:
        ConfigurationError: Gymnasium is not installed, or knows no such environment.
    """

    id: str
    actions: tuple[str, ...] = ()
    entry: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_extra("gymnasium", extra="gymnasium", needed_by="`Gymnasium`")
        import gymnasium

        package, _, name = self.id.rpartition(":")
        try:
            if package:
                import_module(package)
            gymnasium.spec(name)
        except (gymnasium.error.Error, ImportError) as error:
            raise ConfigurationError(
                f"`Gymnasium.id`: given `{self.id}`, expected an environment that Gymnasium knows, or "
                f"`my_package:Quest-v0` where `my_package` registers it. {str(error)[:200]}"
            ) from error

    @classmethod
    def examples(cls) -> tuple[Gymnasium, ...]:
        if find_spec("gymnasium") is None:
            return ()
        return (cls("FrozenLake-v1", ("left", "down", "right", "up"), options={"render_mode": "ansi"}),)

    def begin(self, example: Example, seed: int) -> Episode:
        import gymnasium

        game = gymnasium.make(self.id, disable_env_checker=True, **self.options)
        try:
            return _Game(self, game, int(example.row.get("level", seed)))
        except Exception:
            game.close()
            raise


class _Game(Episode):
    """An episode of a game.

    Args:
        settings: how it is read and written.
        game: of Gymnasium.
        seed: of what is random.
    """

    def __init__(self, settings: Gymnasium, game: Any, seed: int) -> None:
        self.settings, self.game, self.total = settings, game, 0.0
        self.discrete = {" ".join(name.lower().split()): number for number, name in enumerate(settings.actions)}
        self._check_actions()
        self._opening = self._said(game.reset(seed=seed)[0])

    @property
    def opening(self) -> tuple[Message, ...]:
        return self._opening

    def reply(self, turn: Message) -> Reply:
        text = str(turn.get("content"))
        action = self._action(text)
        if action is None:
            there = f"The actions are {', '.join(self.settings.actions)}." if self.discrete else "It is no action here."
            return Reply((_message(f"`{text[-50:]}` is not possible. {there}"),), failed=True)
        seen, reward, terminated, truncated, _ = self.game.step(action)
        self.total += float(reward)
        return Reply(self._said(seen), done=bool(terminated or truncated))

    def reward(self) -> float:
        return self.total

    def close(self) -> None:
        self.game.close()

    def _check_actions(self) -> None:
        """Raise `ConfigurationError` where the names are not those of the actions."""
        space, named = self.game.action_space, len(self.discrete)
        needed = getattr(space, "n", None)
        if (self._takes_texts and not named) or (needed is not None and int(needed) == named):
            return
        expected = f"the names of {needed} actions" if needed is not None else "none, and actions that are texts"
        raise ConfigurationError(
            f"`Gymnasium.actions`: given {named} names, expected {expected}, as the actions of `{self.settings.id}` "
            f"are {space}. Correct the names, or wrap the environment."
        )

    @property
    def _takes_texts(self) -> bool:
        from gymnasium.spaces import Text

        return isinstance(self.game.action_space, Text)

    def _action(self, text: str) -> Any:
        """Return the action that a turn names; None where there is no such action."""
        if not self.discrete:
            return text if self.game.action_space.contains(text) else None
        last = text.strip().rpartition("\n")[2]
        number = self.discrete.get(" ".join(last.lower().split()))
        return None if number is None else int(self.game.action_space.start) + number

    def _said(self, seen: Any) -> tuple[Message, ...]:
        """Return what the agent reads of an observation; raise `ConfigurationError` where that is no text."""
        text = self.game.render() if self.game.render_mode == "ansi" else seen
        if self.settings.entry is not None and isinstance(seen, Mapping):
            text = seen.get(self.settings.entry)
        if not isinstance(text, str):
            raise ConfigurationError(
                f"`{self.settings.id}` shows {type(text).__name__}, expected a text. Name one of its entries "
                "(`Gymnasium.entry`), take `options: {render_mode: ansi}` where it has that, or wrap it."
            )
        return (_message(text),)


def _message(text: str) -> Message:
    return {"role": "user", "content": text}
