"""`python -m unitsphere VERB …` is `unitsphere VERB …`, also in a checkout that is not installed (PYTHONPATH=src)."""

from unitsphere.cli.main import main

if __name__ == "__main__":
    main()
