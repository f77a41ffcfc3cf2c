"""`python -m ovrs`."""

from ovrs.cli.app import main

if __name__ == "__main__":
    main()
