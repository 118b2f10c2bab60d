"""The command line, by `python -m gptailor`."""

from gptailor.cli.main import main

if __name__ == "__main__":
    main()
