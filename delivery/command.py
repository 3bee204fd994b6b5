"""`penstock`, also `python -m delivery.command`: one command for people. The module of each word is loaded only when the word is used.

| word                                                           | what it does                                  | needs                  |
|----------------------------------------------------------------|-----------------------------------------------|------------------------|
| check                                                          | runs a gate on loose files                    | what a check needs     |
| plan                                                           | says what a policy's steps can see            | numpy                  |
| replay, explain                                                | decides a watch again, says why               | numpy, pyarrow, httpx  |
| status, pause, resume, promote, approve, abort, undo, retry    | shows and steers deliveries                   | httpx, a running stack |

Exit status 64 for wrong usage; each word's own module says what 0, 1 and 2 mean.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence

EXIT_USAGE = 64
MODULES: Mapping[str, str] = {
    "check": "validation.check",
    **dict.fromkeys(("replay", "explain"), "delivery.replay"),
    "plan": "validation.plan",
    **dict.fromkeys(("status", "pause", "resume", "promote", "approve", "abort", "undo", "retry"), "delivery.orders_command"),
}
"""Where each word lives: a module with `main(words) -> int`, given all words, its own first."""


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] not in MODULES:
        print(f"usage: penstock {{{','.join(MODULES)}}} ...   (penstock WORD --help says more)", file=sys.stderr)
        return 0 if words[:1] in (["-h"], ["--help"]) else EXIT_USAGE
    module = importlib.import_module(MODULES[words[0]])
    return int(module.main(words))


if __name__ == "__main__":
    sys.exit(main())
