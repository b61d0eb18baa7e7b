"""Runs at interpreter start through `yolo_lightbackbones_autoload.pth`: waits for Ultralytics, installs the plugin.

So a plain `yolo` process, a notebook, a DDP worker and an unpickling `YOLO("best.pt")` all know our modules. Nothing is
imported here that Python does not have loaded already; torch and Ultralytics come when the user imports them.
`YOLO_LIGHTBACKBONES_AUTOLOAD=0` turns it off, in the `.pth` file, before any of this is read.
"""

import sys

TARGET = "ultralytics.nn.tasks"


class AfterImport:
    """A finder that finds nothing of its own: it adds our step behind the import of `TARGET`, then leaves."""

    def __init__(self) -> None:
        self.searching = False

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]  # importing types costs start-up time
        if name != TARGET or self.searching:
            return None
        from importlib.util import find_spec

        self.searching = True
        try:
            spec = find_spec(name)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):  # type: ignore[no-untyped-def]
                execute(module)
                if self in sys.meta_path:  # after a first import that failed we are still there for the second
                    sys.meta_path.remove(self)
                install_plugin()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install_plugin() -> None:
    """Install the plugin; whatever goes wrong there is a warning, never a failed `import ultralytics`."""
    try:
        from yolo_lightbackbones.plugin import register

        register()
    except Exception as error:
        import warnings

        warnings.warn(
            f"yolo_lightbackbones could not install itself; its modules are not available: {error!r}", stacklevel=2
        )


def activate() -> None:
    """Start to wait for Ultralytics, once."""
    if not any(isinstance(finder, AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, AfterImport())
