"""`python -m maskguided` is the command `maskguided`."""

from .cli import main

if __name__ == "__main__":
    main()
