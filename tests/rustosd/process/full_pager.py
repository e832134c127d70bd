"""A pager that has no room for anybody while a forked process is made ready to run."""

import sys

from rustosd.process import pager


class Full(pager.Group):
    closed = False

    def _claim(self, *arguments, **more) -> None:
        super()._claim(*arguments, **more)
        self.closed = True
        self._count()

    def _started(self, key: int) -> None:
        super()._started(key)
        self.closed = False
        self._count()

    def _count(self) -> int:
        total = super()._count()
        if self.closed:
            self._pager.set_room(0, 0, 1, self._supervisor, False)
        return total


pager.Group = Full
if __name__ == "__main__":
    sys.exit(pager.main(sys.argv[1:]))
