"""`python train.py ARGS` is `unitsphere train ARGS`."""

from unitsphere.cli.train import main

if __name__ == "__main__":
    main()
