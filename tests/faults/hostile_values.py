"""Plain values that name code, put in the place of every string of a checkpoint."""

import json
import os
import sys
from contextlib import contextmanager, suppress

import yaml

MODULES = ("antigravity", "this")
"""Nothing else imports them; the first opens a browser, the second prints a poem."""


class Tripwire:
    """Notes what is started or imported from the names in a file, as the interpreter itself reports it.

    Args:
        marker: a path that every command in a payload would create.
    """

    def __init__(self, marker):
        self.marker, self.active, self.seen = marker, False, []
        sys.addaudithook(self._note)

    def _note(self, event, args):
        if not self.active:
            return
        named = event == "import" and args[0] in MODULES
        started = event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn") and self.marker in repr(args)
        if named or started or (event == "compile" and self.marker in repr(args[0])):
            self.seen.append((event, args[0]))

    @contextmanager
    def set(self):
        """Inside, whatever happens, nothing that was named may be run."""
        self.active = True
        try:
            yield
        finally:
            self.active = False
        assert self.seen == []
        assert not os.path.exists(self.marker)
        assert not set(MODULES) & set(sys.modules)


def payloads(marker):
    """Class paths of the standard library, and what would make a parser of configurations call them."""
    command = {"class_path": "os.system", "init_args": {"command": f"touch {marker}"}}
    return [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "antigravity",
        "this.s",
        f"os.system('touch {marker}')",
        f"!!python/object/apply:os.system ['touch {marker}']",
        json.dumps(command),
    ]


def structures(marker):
    """Entries that the libraries look for in a checkpoint, each with a payload in it."""
    calls = [
        {"class_path": "os.system", "init_args": {"command": f"touch {marker}"}},
        {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", marker]}},
        {"class_path": "builtins.eval", "dict_kwargs": {"source": f"open({marker!r}, 'w')"}},
        {"class_path": "antigravity.webbrowser.open", "init_args": {"url": marker}},
    ]
    for call in calls:
        yield {"hyper_parameters": {"optimizer": call}}
        yield {"hyper_parameters": {"_class_path": call["class_path"], **call.get("init_args", {})}}
        yield {"hyper_parameters": {"_instantiator": call["class_path"]}, "hparams_name": call["class_path"]}
        yield {"datamodule_hyper_parameters": {"task": call}, "hparams_type": call["class_path"]}
        parts = {"model": {"objective": call, "student": call, "tokenizer": call, "optimizer": call}, "trainer": call}
        yield {"veto_pl_config": yaml.safe_dump({**parts, "data": {"task": call}, "seed_everything": call})}


def strings(value, path=()):
    """The place of every string below a value, in files of JSON and in YAML too."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    if isinstance(value, str | bytes):
        yield path
        with suppress(ValueError, yaml.YAMLError):
            if isinstance(parsed := yaml.safe_load(value), dict | list):
                yield from strings(parsed, (*path, None))
    for key, one in inner:
        yield from strings(one, (*path, key))


def replaced(value, place, payload):
    """A copy with the string at one place replaced, or at every place for None."""
    if place == () or (place is None and isinstance(value, str)):
        return payload if isinstance(value, str) else payload.encode()
    if isinstance(value, str | bytes):
        try:
            parsed = yaml.safe_load(value)
        except (ValueError, yaml.YAMLError):
            return value
        if not isinstance(parsed, dict | list):
            return value
        told = json.dumps(replaced(parsed, place and place[1:], payload))
        return told if isinstance(value, str) else told.encode()

    def at(key, one):
        return replaced(one, place and place[1:], payload) if place is None or place[0] == key else one

    if isinstance(value, dict):
        return type(value)({key: at(key, one) for key, one in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(at(key, one) for key, one in enumerate(value))
    return value
