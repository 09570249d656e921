"""Everything that measures: speed, memory, cost and accuracy, beside other implementations.

Each package is a command, run from the root of the checkout, such as `python -m benchmarks.op`.
`results/` holds what was measured.
"""

import sys
from pathlib import Path

# Programs of tools/ import each other by bare names; so must whoever imports them.
_TOOLS = str(Path(__file__).resolve().parents[1] / 'tools')
if _TOOLS not in sys.path:
    sys.path.append(_TOOLS)
