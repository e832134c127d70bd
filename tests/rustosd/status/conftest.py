"""Services on the kernel's sockets, as the tests of services have them."""

from tests.services.conftest import serve

__all__ = ["serve"]
