"""The command line: ``sunx-adapter``, or ``python -m sunx_adapter``."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it quietly, even while it is still being imported."""
    try:
        from sunx_adapter.cli import run  # noqa: PLC0415 - so that Ctrl-C is caught meanwhile

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
