"""A container's health check: exit status 0 when a URL answers 200, and where a word is given too, when that part of its JSON is healthy.

    python -S /healthy.py URL [PART]       PART: a key whose `status` must be "healthy", like scheduler in Airflow's health

Standard library only, and little of it: it runs every few seconds.
"""

import json
import sys
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

TIMEOUT_S = 4


def main(words: list[str]) -> int:
    try:
        with build_opener(ProxyHandler({})).open(words[0], timeout=TIMEOUT_S) as answer:
            data = answer.read()
        status = json.loads(data).get(words[1], {}).get("status") if words[1:] else "healthy"
    except (URLError, OSError, ValueError) as error:
        print(f"{words[0]}: {error}")
        return 1
    print(f"{' '.join(words)}: {status}")
    return 0 if status == "healthy" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
