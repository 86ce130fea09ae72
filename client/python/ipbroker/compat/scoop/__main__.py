"""``python -m ipbroker.compat.scoop``."""

from .launcher import main

if __name__ == "__main__":
    main()
