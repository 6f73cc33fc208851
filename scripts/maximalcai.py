"""What PREFIX/bin/maximalcai starts, with the prefix before its own words.

It is no command for people.
"""

import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

if __name__ == "__main__":
    from lockedenv.cli.command import main

    sys.exit(main(sys.argv[1], sys.argv[2:]))
