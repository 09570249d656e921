"""`python -m benchmarks.convergence`."""

from benchmarks.convergence.run import main

if __name__ == '__main__':
    main()
