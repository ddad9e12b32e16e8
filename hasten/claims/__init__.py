"""The claims of every paper, one module per method, mirroring the families.

`hasten.claims(...)` is also a call: this package and the function that lists claims share the name that users expect,
so the package is callable.
"""

from __future__ import annotations

import sys
from types import ModuleType

from hasten.core.claim import Claim, claims


class _CallablePackage(ModuleType):
    def __call__(self, family: str | None = None) -> list[Claim]:
        return claims(family)


sys.modules[__name__].__class__ = _CallablePackage
