"""Recognises what an export must not do: install packages, change installed ones, use the network.

Each function takes the arguments of an audit event of Python (https://docs.python.org/3/library/audit_events.html), and
returns what the event would do, in words, or None if it is harmless.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
import site
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from yolo_lightbackbones.messages import quoted

_INSTALLERS = frozenset(
    {
        *("pip", "pipx", "uv", "conda", "mamba", "micromamba", "easy_install", "poetry", "pdm", "ensurepip"),
        *("apt", "apt-get", "aptitude", "dpkg", "dnf", "yum", "zypper", "apk", "pacman", "brew", "snap", "choco"),
        *("npm", "winget", "rpm"),
    }
)
_CHANGES = frozenset(
    {
        *("install", "uninstall", "reinstall", "remove", "purge", "autoremove", "add", "sync", "update", "upgrade"),
        *("dist-upgrade", "full-upgrade", "download", "wheel", "create", "inject", "build-dep"),
        *("-i", "--install", "-r", "--remove", "-P", "--purge", "-U", "-S", "-Syu", "--upgrade"),
    }
)
"""Arguments with which an installer changes something; with others, such as `--version` and `list`, it only reports."""

_DOWNLOADERS = frozenset({"curl", "wget", "aria2c", "ssh", "scp", "sftp", "rsync", "ftp", "uvx"})
_GIT = frozenset({"clone", "fetch", "pull", "push", "ls-remote", "submodule", "remote"})
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "fish", "cmd", "powershell", "pwsh"})
_WRAPPERS = frozenset({"sudo", "env", "nohup", "nice", "time", "timeout", "exec", "command", "xargs", "stdbuf"})


# --- programs ---------------------------------------------------------------------------------------------------------


def program(arguments: Sequence[Any]) -> str | None:
    """For `subprocess.Popen`, `os.posix_spawn`, `os.exec` and `os.spawn`: a program and its arguments."""
    command = arguments[2 if isinstance(arguments[0], int) else 1]  # os.spawn has a mode first
    words = [command] if isinstance(command, str | bytes | os.PathLike) else [*command]
    texts = [os.fsdecode(word) for word in words if isinstance(word, str | bytes | os.PathLike)]
    found = any(map(installs, _commands(texts[0]))) if len(texts) == 1 else installs(texts)
    return f"running {quoted(' '.join(texts))}" if found else None


def shell_command(arguments: Sequence[Any]) -> str | None:
    """For `os.system`: a line for the shell."""
    line = os.fsdecode(arguments[0])
    return f"running {quoted(line)}" if any(map(installs, _commands(line))) else None


def installs(words: Sequence[str]) -> bool:
    """Whether a command installs, changes or removes packages, or downloads something."""
    words = _without_wrappers(words)
    if not words:
        return False
    name, rest = _name(words[0]), words[1:]
    if name in _SHELLS:
        return any(installs(command) for word in rest for command in _commands(word) if " " in word)
    if name.startswith(("python", "pypy")):
        if "-m" in rest:
            return installs(rest[rest.index("-m") + 1 :])
        return installs([*rest[_options(rest) :]]) if "-c" not in rest else False
    if name == "git":
        return bool(_GIT & set(rest))
    return name in _DOWNLOADERS or (name in _INSTALLERS and bool(_CHANGES & set(rest))) or name == "ensurepip"


def _without_wrappers(words: Sequence[str]) -> Sequence[str]:
    """Drop assignments, and programs that run another program, with their options: `sudo -n env A=1 pip ...`."""
    wrapped = False
    for number, word in enumerate(words):
        if _name(word) in _WRAPPERS:
            wrapped = True
        elif not (re.match(r"\w+=", word) or (wrapped and re.match(r"-|[\d.]+[smhd]?$", word))):
            return words[number:]
    return []


def _commands(line: str) -> Iterator[list[str]]:
    """Split a line for the shell into its commands."""
    line = line.replace("\n", " ; ")
    lexer = shlex.shlex(line.replace("\\", "/") if os.name == "nt" else line, posix=True, punctuation_chars=True)
    lexer.commenters = ""
    try:
        tokens = [*lexer]
    except ValueError:  # a quotation without an end
        tokens = line.split()
    command: list[str] = []
    for token in tokens:
        if set(token) <= set("();<>|&"):
            yield command
            command = []
        else:
            command.append(token)
    yield command


def _name(word: str) -> str:
    """`/usr/bin/pip3.11` -> `pip`."""
    return re.sub(r"[\d.]*(\.exe)?$", "", re.split(r"[/\\]", word)[-1].lower()) or word


def _options(words: Sequence[str]) -> int:
    """How many options of Python come first."""
    return next((number for number, word in enumerate(words) if not word.startswith("-")), len(words))


# --- network ----------------------------------------------------------------------------------------------------------


def connection(arguments: Sequence[Any]) -> str | None:
    """For `socket.connect`, `socket.sendto` and `socket.sendmsg`: a socket and the address of the other end."""
    address = arguments[1]
    return host(address) if isinstance(address, tuple) else None  # a path of a Unix socket, or no address


def host(arguments: Sequence[Any]) -> str | None:
    """For `socket.getaddrinfo` and its kind: the name or number of a host, and more."""
    name = os.fsdecode(arguments[0]) if isinstance(arguments[0], bytes) else arguments[0]
    return None if not isinstance(name, str) or _is_here(name) else f"asking for the host {quoted(name)}"


def _is_here(name: str) -> bool:
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return name in ("", "localhost", "ip6-localhost", "localhost.localdomain", socket.gethostname())
    return address.is_loopback or address.is_unspecified


def name_server(arguments: Sequence[Any]) -> str | None:
    """For `socket.getnameinfo`: an address whose name is asked for."""
    return connection((None, *arguments))


# --- files ------------------------------------------------------------------------------------------------------------

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def opened(arguments: Sequence[Any]) -> str | None:
    """For `open`: a path, a mode and flags."""
    path, mode, flags = arguments
    writes = flags & _WRITES if isinstance(flags, int) else set(str(mode)) & set("wax+")
    return changed(path) if writes else None


def places(*indices: int) -> Callable[[Sequence[Any]], str | None]:
    """For `os.remove`, `os.rename` and their kind: the arguments at `indices` are paths that are changed."""

    def check(arguments: Sequence[Any]) -> str | None:
        return next(filter(None, (changed(arguments[index]) for index in indices)), None)

    return check


def changed(path: Any) -> str | None:
    """What a change of this path does to the installed packages. Python's own caches of byte code may change."""
    if not isinstance(path, str | bytes | os.PathLike):  # the number of an open file
        return None
    place = os.path.abspath(os.fsdecode(path))
    inside = place.startswith(_ROOTS) and "__pycache__" not in place
    return f"changing {quoted(place)}" if inside else None


def _roots() -> tuple[str, ...]:
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({os.path.join(spelling(folder), "") for folder in folders for spelling in (str, os.path.realpath)})


_ROOTS = _roots()
"""Folders of installed packages, with a separator at the end."""
