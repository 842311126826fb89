"""``python -m helpers.cut_sites``: see its ``--help``."""

from helpers.cut_sites import main

if __name__ == "__main__":
    main()
