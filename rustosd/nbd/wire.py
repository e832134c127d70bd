"""The numbers of NBD's transmission phase, for Python and for compiled modules: see `wire.pxd`."""

import cython

if not cython.compiled:
    raise ImportError("rustosd.nbd.wire must be compiled: python setup.py build_ext --inplace")
