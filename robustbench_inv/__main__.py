"""Lets ``python -m robustbench_inv`` do what ``invbench`` does."""

from robustbench_inv.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
