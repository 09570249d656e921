"""`python -m benchmarks.training`."""

from benchmarks.training.run import main

if __name__ == '__main__':
    main()
