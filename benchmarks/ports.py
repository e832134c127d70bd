"""What the servers offer, and where; the same numbers on every stack."""

ECHO = 7        # UDP: sends datagrams back
SINK = 5001     # TCP: swallows, then tells how many octets in 8 of them
SOURCE = 5002   # TCP: sends without end
DOOR = 5003     # TCP: stays silent unless spoken to, then echoes
