"""`python -m msssl`: the same as the console script `msssl`."""

from msssl.cli import main

if __name__ == "__main__":
    main()
