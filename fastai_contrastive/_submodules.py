"What lets a new objective or pretext task touch no other file"
from importlib import import_module
from pkgutil import iter_modules

def reexport(
    ns:dict, # `globals()` of a package's `__init__`
):
    "Import every module of a package, and give the package their public names and an `__all__`"
    mods = [import_module(f"{ns['__name__']}.{m.name}") for m in iter_modules(ns['__path__'])]
    for m in mods: ns.update({o:getattr(m, o) for o in m.__all__})
    ns['__all__'] = [o for m in mods for o in m.__all__]
