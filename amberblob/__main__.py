"""``python -m amberblob``: the same as the ``amberblob`` command."""

from amberblob.cli import main

if __name__ == "__main__":
    main()
