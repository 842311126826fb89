"""``python -m helpers.public_data``: see its ``--help``."""

from helpers.public_data import main

if __name__ == "__main__":
    main()
