"""`python -m ddetr_plugin.cli`: the command `ddetr` where it is not on the path."""

from ddetr_plugin.cli import main

if __name__ == '__main__':
    main()
