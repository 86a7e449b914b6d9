"""The commands of `maskguided`, one in each file; cli.py puts them together."""
