"""python -m flawmap.cli"""

import sys

from flawmap.cli import main

if __name__ == "__main__":
    sys.exit(main())
