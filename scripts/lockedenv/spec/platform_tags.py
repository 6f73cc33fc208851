"""The platform that wheels are locked for."""

from __future__ import annotations

# Wheels are chosen for this glibc or an older one: torch's own are made for it. Its name in a
# wheel's platform tag.
GLIBC = "2.28"
PLATFORM = "x86_64-manylinux_2_28"
