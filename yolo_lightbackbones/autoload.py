"""Installs the plugin when Ultralytics is imported; `yolo_lightbackbones_autoload.pth` starts it in every interpreter.

So a plain `yolo` process, a notebook, a DDP worker and a process that unpickles `YOLO("best.pt")` all know our modules.
This module imports only what Python has loaded already; torch and Ultralytics are imported when the user imports them.
`YOLO_LIGHTBACKBONES_AUTOLOAD=0` turns it off: the `.pth` file checks the variable before it imports this module.
"""

import sys

LOOKUP = "ultralytics.utils.checks"
"""Once it is imported, our YAMLs can be found: the `yolo` command looks for `cfg=` before it imports any model."""
PLUGIN = "ultralytics.nn.tasks"
"""Once it is imported, models can be built, and the rest of the plugin is installed."""
TARGETS = (LOOKUP, PLUGIN, "ultralytics.utils.callbacks.base", "ultralytics.utils.torch_utils")
"""Modules to watch. The plugin patches the last two as well, and patches them again after an `importlib.reload`."""


class AfterImport:
    """An import hook that calls `install` after each module of `TARGETS`; the other finders find the modules.

    It stays in `sys.meta_path`: a module can be imported again, for example after an import that failed.
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
    """Install the part of the plugin that belongs to a module; errors become warnings, so the import never fails."""
    try:
        if name == LOOKUP:
            from yolo_lightbackbones.plugin import lookup

            lookup.install(sys.modules[name])
        else:
            # When all of Ultralytics is imported again, these modules come before PLUGIN, which installs everything.
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
    """Start waiting for Ultralytics; a second call does nothing."""
    if not any(isinstance(finder, AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, AfterImport())


def deactivate() -> None:
    """Stop waiting for Ultralytics."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, AfterImport)]
