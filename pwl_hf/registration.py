"""Making transformers' Auto classes know our models, without importing transformers for it.

transformers has no entry point for packages: what it does not import it does not know. So our classes are
registered at once if its auto modules are loaded, and otherwise right after they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_configs() -> None:
    """Tell AutoConfig of our configs."""
    from transformers import AutoConfig

    from pwl_hf.modeling import PWLConfig, VGGConfig

    for config_class in (PWLConfig, VGGConfig):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def register_models() -> None:
    """Tell the Auto classes, and so the pipelines, of our models."""
    import transformers

    from pwl_hf import modeling
    from pwl_hf.modeling.task_names import TASKS

    for task in TASKS.values():
        model_class = getattr(modeling, task.class_name)
        getattr(transformers, task.auto_class).register(modeling.PWLConfig, model_class, exist_ok=True)
    transformers.AutoModelForImageClassification.register(
        modeling.VGGConfig, modeling.VGGForImageClassification, exist_ok=True
    )


_HOOKS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": register_configs,
    "transformers.models.auto.modeling_auto": register_models,
}


def register_when_loaded() -> None:
    """Register now what can be, and the rest as soon as transformers' auto modules are imported."""
    waiting = {}
    for name, hook in _HOOKS.items():
        if name in sys.modules:
            hook()
        else:
            waiting[name] = hook
    if waiting:
        sys.meta_path.insert(0, _AfterImport(waiting))


class _AfterImport(MetaPathFinder):
    """Calls a hook after a module was imported, and takes itself away after the last.

    Our own modules import transformers' auto modules too. The hooks need ours whole, so they wait until
    no module of ours is being imported.
    """

    def __init__(self, hooks: dict[str, Callable[[], None]]) -> None:
        self.hooks = hooks
        self.loaded: list[str] = []
        self.own_imports = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        is_own = fullname.startswith("pwl_hf.")
        if not is_own and fullname not in self.hooks:
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self.own_imports += is_own
            try:
                execute(module)
            finally:
                self.own_imports -= is_own
            if not is_own:
                self.loaded.append(fullname)
            if self.own_imports == 0:
                self.call_hooks()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def call_hooks(self) -> None:
        """Call the hooks of all modules that are loaded, each once."""
        while self.loaded:
            if hook := self.hooks.pop(self.loaded.pop(0), None):
                hook()
        if not self.hooks and self in sys.meta_path:
            sys.meta_path.remove(self)
