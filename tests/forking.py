"""Short processes: forked off one that has imported what takes long, instead of started.

    python forking.py serve SOCKET            # imports, then forks once for every command that arrives
    python forking.py run SOCKET COMMAND...   # sends a command with its folder, environment and streams, and waits

The parent has imported torch and its kind, and neither Ultralytics nor the package: what a process imports of those
two, and in which order, is its own. A command is started in full if Python or the autoload would read something else in
its environment at start-up than the parent did.
"""

from __future__ import annotations

import json
import os
import socket
import sys

HEAVY = (
    *("torch", "torchvision", "torch.utils.flop_counter", "numpy", "cv2", "PIL.Image", "scipy", "matplotlib.pyplot"),
    *("requests", "yaml", "rich.table", "rich.progress", "polars"),
    *("typer", "typer._adapters"),  # the second, where a version has it, is imported when a command is called
)
READ_AT_START = ("PYTHON", "OMP_", "MKL_", "MPL", "YOLO_LIGHTBACKBONES_AUTOLOAD", "LD_")
"""What the names of variables begin with that are read before a command is."""


def at_start(environment: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key.startswith(READ_AT_START)}


def prepare() -> None:
    """Import HEAVY, and keep the garbage collectors of forks away from it: their visits would copy the memory.

    They come as rarely as in the tests' own process (`conftest.py`): models are many objects and little garbage.
    """
    import gc
    import importlib.util

    for name in HEAVY:
        if importlib.util.find_spec(name):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


def serve(address: str) -> None:
    """Wait for commands, one connection each, until the parent of this process closes its input."""
    import select
    import signal

    started_with = at_start(dict(os.environ))  # imports may add to it
    prepare()
    early = {name.partition(".")[0] for name in sys.modules} & {"ultralytics"}
    assert not early
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for the commands
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([server, sys.stdin], [], [])
            if server not in ready:
                return
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _attend(connection, started_with)
            connection.close()


def _attend(connection: socket.socket, started_with: dict[str, str]) -> None:
    """Fork the command's process, wait for it, tell how it ended, and end."""
    message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while not message.endswith(b"\n"):
        message += connection.recv(1 << 20)
    job = json.loads(message)
    if at_start(job["environment"]) != started_with:
        connection.sendall(b"start it")
        os._exit(0)
    child = os.fork()
    if child == 0:
        connection.close()
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        _become(job)
    _, status = os.waitpid(child, 0)
    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(job: dict[str, object]) -> None:
    """Run the script as Python runs it, in this process, and end it as Python ends."""
    import runpy
    import traceback

    code = 1
    try:
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode, encoding="utf-8", errors=errors, buffering=1, closefd=False)
            for number, mode, errors in ((0, "r", "strict"), (1, "w", "strict"), (2, "w", "backslashreplace"))
        )
        os.environ.clear()
        os.environ.update(job["environment"])  # type: ignore[call-overload]
        os.chdir(str(job["folder"]))
        script, *rest = job["command"]  # type: ignore[misc]
        sys.argv = [script, *rest]
        sys.path[0] = os.path.dirname(os.path.abspath(script))
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exc()
        else:
            sys.excepthook(type(error), error, error.__traceback__)
    finally:
        import atexit
        import contextlib

        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code & 0xFF)


def run(address: str, command: list[str]) -> None:
    """Have a command run, and end as it does."""
    job = {"command": command, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        message = json.dumps(job).encode() + b"\n"
        sent = socket.send_fds(connection, [message], [0, 1, 2])
        connection.sendall(message[sent:])
        answer = connection.recv(64).decode()
    if answer == "start it":
        os.execv(sys.executable, [sys.executable, *command])
    code = int(answer or "1")
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    verb, address, *command = sys.argv[1:]
    if verb == "serve":
        serve(address)
    else:
        run(address, command)
