"""`python -m ridgecast` is the `ridgecast` command."""

from .cli import main

if __name__ == "__main__":
    main()
