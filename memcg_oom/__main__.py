"""`python -m memcg_oom` is the command memcg-oom."""

import sys

from memcg_oom.command import main

if __name__ == "__main__":
    sys.exit(main())
