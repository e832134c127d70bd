"""A pager that may have descriptors for three processes."""

import resource
import sys

from rustosd.process import pager

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (70, 70))
    sys.exit(pager.main(sys.argv[1:]))
