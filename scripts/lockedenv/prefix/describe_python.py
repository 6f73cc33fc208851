"""Prints as JSON which Python runs this file. It is started with -I -S, so that Python imports
nothing of the machine.
"""

import json
import os
import sys
import sysconfig


def library_folders() -> list[str]:
    """The folders of the standard library; in a virtual environment, the base interpreter's."""
    found = []
    for name in ("stdlib", "platstdlib"):
        folder = sysconfig.get_path(name)
        if folder.startswith(sys.prefix):
            folder = sys.base_prefix + folder[len(sys.prefix) :]
        if os.path.isdir(folder):
            found.append(folder)
    return found


if __name__ == "__main__":
    archive = "python{}{}.zip".format(*sys.version_info[:2])
    description = {
        "version": sys.version.split()[0],
        "build": " ".join(sys.version.split()[1:]),
        "folders": library_folders(),
        "archive": os.path.join(sys.base_prefix, "lib", archive),
    }
    print(json.dumps(description))
