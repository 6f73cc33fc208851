"""The backends by name, in the order in which --backend auto prefers them."""

from __future__ import annotations

from lockedenv.backends.base import Backend
from lockedenv.backends.conda import Conda
from lockedenv.backends.pip import Pip
from lockedenv.spec.layers import BackendName

BACKENDS: dict[BackendName, Backend] = {
    backend.name: backend for backend in (Conda(), Pip())
}
