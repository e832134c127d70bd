"""A pager that is late: it looks at how much is in memory only now and then, as on a machine that is very busy."""

import sys
import time

from rustosd.process import pager

EVERY_S = 0.05


class Late(pager.Group):
    """Does at once what it is asked, and nothing else."""

    looked_at = 0.0

    def _watch(self) -> None:
        if time.monotonic() >= self.looked_at + EVERY_S:
            super()._watch()
            self.looked_at = time.monotonic()


pager.Group = Late
if __name__ == "__main__":
    sys.exit(pager.main(sys.argv[1:]))
