"""`python -m qigstore` is `qigstore`."""

from qigstore.cli import main

if __name__ == "__main__":
    main()
