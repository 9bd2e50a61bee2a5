"""`verb.option=value` for verbs that make no job: any option may be written as a setting, as the settings of a job are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jobs.codec import near_matches
from jobs.errors import InputError

__all__ = ["as_options"]

_SETTING = re.compile(r"(?P<verb>[a-z][a-z-]*)\.(?P<name>\w+)=(?P<value>.*)", re.DOTALL)
WITH_SETTINGS = ("overrides", "runs_and_settings")
"""Names of the arguments that take a job's settings."""
WORDS_OF_A_FLAG = {"true": True, "false": False}


def as_options(command: Any, words: Sequence[str]) -> list[str]:
    """The words of a command line, each `verb.option=value` of its own verb written as the option that it names.

    Verbs that take settings of a job (`text-to-3d`, `images`, `export`, `submit`, `train`, `sample`, …) are left alone.

    Args:
        command: click's, of the whole program. words: without the program's name.

    Raises:
        InputError: the verb has no such option, or a flag is set to something else than true or false.
    """
    path: list[str] = []
    for word in words:
        if not hasattr(command, "commands") or word not in command.commands:
            break
        command = command.commands[word]
        path.append(word)
    if not path or hasattr(command, "commands") or any(param.name in WITH_SETTINGS for param in command.params):
        return list(words)
    options = {param.name: param for param in command.params if param.param_type_name == "option"}
    rest: list[str] = []
    for word in words[len(path) :]:
        match = _SETTING.fullmatch(word)
        rest += [word] if match is None or match["verb"] != path[-1] else _option(path[-1], options, match)
    return [*path, *rest]


def _option(verb: str, options: dict[str, Any], match: re.Match[str]) -> list[str]:
    name, value = match["name"], match["value"]
    if name not in options:
        known = ", ".join(f"{verb}.{option}" for option in options)
        raise InputError(f"There is no setting {verb}.{name}{near_matches(name, options)}; {verb} has: {known}.")
    param = options[name]
    if not param.is_flag:
        return [param.opts[0], value]
    if value not in WORDS_OF_A_FLAG:
        raise InputError(f"{verb}.{name} is {value!r}, but true or false was expected.")
    opposite = list(param.secondary_opts)
    return [param.opts[0]] if WORDS_OF_A_FLAG[value] else opposite[:1]
