"""Turns exceptions into one-line messages for the user, which name the wrong key, path, number or shape."""

import difflib
import errno
import importlib
import inspect
import re
from collections.abc import Iterable

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from msssl.data.pixels.item import ReadFailedError
from msssl.errors import UserError
from msssl.run.files import NotWrittenError

_OUT_OF_RESOURCES = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def failure(error: BaseException) -> str | None:
    """The line for a run that went wrong, not its arguments, or None for any other error."""
    if isinstance(error, FloatingPointError | NotWrittenError | ChildProcessError | ReadFailedError):
        return _without_traceback(str(error))
    if isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES:
        return _of_the_system(error)
    if isinstance(error, torch.OutOfMemoryError):
        return " ".join([str(error).partition(". ")[0] + ".", *getattr(error, "__notes__", [])])
    return None


def user_message(error: BaseException) -> str | None:
    """The line for an error that was raised on purpose, or None for any other, whose traceback is shown.

    On purpose are msssl's `UserError`, Lightning's `MisconfigurationException`, also where another error was raised
    while they were handled, and what the operating system refuses, an `OSError`.
    """
    if "Union subtypes" in str(error):  # raised by a constructor, and wrapped by jsonargparse
        reasons = re.findall(
            r"^\s*- (?!Expected |Does not validate)(.+(?:(?<=:)\n.+)?)", str(error), flags=re.MULTILINE
        )
        if reasons:
            return " ".join(reasons[-1].split())
    root: BaseException | None = error
    while root is not None and not isinstance(root, UserError | MisconfigurationException):
        root = root.__cause__ or root.__context__
    if root is None:
        return _of_the_system(error) if isinstance(error, OSError) else None
    message = _without_traceback(str(root))
    if "No supported gpu backend" in message:
        return "trainer.accelerator is gpu, but there is none that torch can use: --trainer.accelerator cpu needs none"
    return message if isinstance(root, ImportError) else " ".join(message.split())


def _of_the_system(error: OSError) -> str:
    """The line for what the operating system refuses, with the names of the files that it is about."""
    if error.strerror is None:  # raised by Python code
        return " ".join(_without_traceback(str(error)).split())
    names = dict.fromkeys(str(name) for name in (error.filename, error.filename2) if name is not None)
    return ": ".join([*names, error.strerror])


def _without_traceback(message: str) -> str:
    """The last line of an error of a worker process, without its type."""
    return message.strip().splitlines()[-1].partition(": ")[2] if "Original Traceback" in message else message


def condense(message: str, keys: Iterable[str]) -> str:
    """One line for a message of jsonargparse, with the nearest right name.

    Args:
        message: often a nest of "does not validate against any of the Union subtypes".
        keys: those that the parser knows.

    >>> condense("unrecognized arguments: --trainer.max_epoch 3", ["trainer.max_epochs"])
    'no option trainer.max_epoch; did you mean trainer.max_epochs?'
    """
    if match := re.search(r"unrecognized arguments: -*([\w.]+)|does not accept option '(.+?)'", message):
        name = match[1] or match[2]
        groups = {key.partition(".")[0] for key in keys}
        return f"no option {name}{_nearest(name, keys) or _nearest(name.partition('.')[0], groups)}"
    if match := re.search(r"are required: (.*\b(?:model|data)\b.*)", message):
        keys_missing = ", ".join(name.rpartition(".")[2] for name in match[1].split(", "))
        return f"{keys_missing} missing: name a config, such as --config cifar.yaml"
    parents = list(dict.fromkeys(re.findall(r'Parser key "(.+?)"', message)))
    key = ".".join(parents)
    if match := re.search(r"Option '(.+?)' is not accepted", message):
        classes = re.findall(r"given class_path '(.+?)'", message)
        classes += re.findall(r"callable class: .+class_path='([\w.]+)'", message)
        return f"no option {key}.{match[1]}{_nearest(match[1], _options(classes))}"
    if match := re.search(r"Problem with given class_path '(.+?)':\s+(module '.+|No module.+)", message):
        return f"{key}: {match[1]}: {match[2]}{_nearest(match[1].rpartition('.')[2], _names(match[1]))}"
    if match := re.search(r"Expected a dot import path string: (\w+)(\S*)", message):
        name = match[0].rpartition(" ")[2]
        no_class = f"{key}: no class {name}{_nearest(name, _names('msssl.'))}"
        # None is given to an argument of an optimizer or schedule
        return f"{key}: expected a value, got null" if match[1] == "None" else no_class
    if match := re.search(r"but \S+ is abstract\n(?:.*\n)+.*value: NestedArg\(key='(.+?)'", message):
        example = " such as --data msssl.ImageFolder," if key == "data" else ""
        return f"{key}.{match[1]} is an option of a class: name the class first,{example} or a config that has one"
    if match := re.search(r"Got value: (.+)", message) or re.search(r"Given value: (.+)", message):
        return _wrong_value(key, match[1], message)
    return " ".join(message.split())


def _wrong_value(key: str, value: str, message: str) -> str:
    if match := re.search(r"Multiple subclasses with name (\w+)\. .+?: (.+?)\.?$", message, flags=re.MULTILINE):
        return f"{key}: several classes are named {match[1]}: give the path of one, {match[2]}"
    if match := re.match(r"NestedArg\(key='(.+?)', val=(.+)\)", value):  # of a class that takes no such value
        named = key if key.endswith(f".{match[1]}") else f"{key}.{match[1]}"
        return f"{named}: {match[2]} is not a value that it takes"
    value = re.sub(r"^None\b", "null", value.partition(". Got value: ")[0])
    return f"{key}: expected {_expected(message)}, got {value}"


def _expected(message: str) -> str:
    """The types that the innermost value could have had."""
    lines = re.findall(r"^( *)(?:- )?Expected an? (.+?)(?:\. Got.*)?$", message, flags=re.MULTILINE)
    deepest = max((len(indent) for indent, _ in lines), default=0)
    names = [re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", name) for indent, name in lines if len(indent) == deepest]
    names = [re.sub(r"Literal\[(.+)\]", lambda match: match[1].replace("'", ""), name) for name in names]
    return " or ".join(dict.fromkeys(name.replace("typing.", "").replace("NoneType", "null") for name in names))


def _nearest(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _options(class_paths: list[str]) -> list[str]:
    """Names of the arguments of the innermost class, its bases' included."""
    if not class_paths:
        return []
    module, _, name = class_paths[-1].rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    inits = [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]
    return [parameter for init in inits for parameter in inspect.signature(init).parameters]


def _names(class_path: str) -> list[str]:
    try:
        return dir(importlib.import_module(class_path.rpartition(".")[0]))
    except ImportError:
        return []
