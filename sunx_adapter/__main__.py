"""``python -m sunx_adapter`` is the command line."""

from sunx_adapter.cli import main

if __name__ == "__main__":
    main()
