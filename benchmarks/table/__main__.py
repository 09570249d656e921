"""`python -m benchmarks.table`."""

from benchmarks.table.run import main

if __name__ == '__main__':
    main()
