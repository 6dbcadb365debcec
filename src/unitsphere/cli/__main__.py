"""`python -m unitsphere.cli VERB …` is `unitsphere VERB …`."""

from unitsphere.cli.main import main

if __name__ == "__main__":
    main()
