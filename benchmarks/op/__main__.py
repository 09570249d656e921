"""`python -m benchmarks.op`."""

from benchmarks.op.run import main

if __name__ == '__main__':
    main()
