"""A pager that finds no page in memory which tells whose a forked process's space is, as if all of it were in swap."""

import sys

from rustosd.process import pager


class Blind(pager.Pager):
    def marks(self, _index: int, _pid: int, _page: int, _protected: bool) -> None:
        return None


pager.Pager = Blind
if __name__ == "__main__":
    sys.exit(pager.main(sys.argv[1:]))
