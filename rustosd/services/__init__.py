"""What the stack serves out of the box: echo, iperf3 and HTTP, as plain asyncio protocols over any network."""
