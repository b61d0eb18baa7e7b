"""Runs at interpreter start through `yolo_lightbackbones_autoload.pth`: waits for Ultralytics, installs the plugin.

So a plain `yolo` process, a notebook, a DDP worker and an unpickling `YOLO("best.pt")` all know our modules. Nothing is
imported here that Python does not have loaded already; torch and Ultralytics come when the user imports them.
`YOLO_LIGHTBACKBONES_AUTOLOAD=0` turns it off, in the `.pth` file, before any of this is read.
"""

import sys

LOOKUP = "ultralytics.utils.checks"
"""Our YAMLs can be found as soon as this is there: the `yolo` command asks for `cfg=` before it imports any model."""
PLUGIN = "ultralytics.nn.tasks"
"""Everything else is installed when models can be built."""
TARGETS = (LOOKUP, PLUGIN, "ultralytics.utils.callbacks.base", "ultralytics.utils.torch_utils")
"""The plugin is on the other two as well, and goes on again if they are executed anew, as `importlib.reload` does."""


class AfterImport:
    """A finder that finds nothing of its own: it adds our step behind the execution of a few of Ultralytics' modules.

    It stays: a module can be imported anew, or for the first time after an import that failed.
    """

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]  # importing types costs start-up time
        if name not in TARGETS:
            return None
        finders = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        specs = (finder.find_spec(name, path, target) for finder in finders)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):  # type: ignore[no-untyped-def]
                execute(module)
                if self in sys.meta_path:  # unless `deactivate` was called since
                    install(name)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install(name: str) -> None:
    """Install what belongs on this module; whatever goes wrong is a warning, never a failed `import ultralytics`."""
    try:
        if name == LOOKUP:
            from yolo_lightbackbones.plugin import lookup

            lookup.install(sys.modules[name])
        else:
            # While Ultralytics is imported anew, its other modules come before the parser, which brings everything.
            plugin, tasks = sys.modules.get("yolo_lightbackbones.plugin.install"), sys.modules.get(PLUGIN)
            is_registered = getattr(plugin, "is_registered", None)  # another thread may be importing it just now
            if name == PLUGIN or (is_registered is not None and is_registered() and hasattr(tasks, "parse_model")):
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


def deactivate() -> None:
    """Wait no longer."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, AfterImport)]
