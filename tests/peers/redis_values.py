"""Sets so many keys of a redis server, reads all of them in another order, and compares: HOST PORT KEYS."""

import random
import socket
import sys

PIPELINE = 200
OCTETS = 1024


def value(key: int) -> bytes:
    return random.Random(key).randbytes(OCTETS)


def request(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def main(host: str, port: int, keys: int) -> None:
    done, read, wrong = 0, 0, 0
    with socket.create_connection((host, port)) as connection, connection.makefile("rb") as answers:
        for first in range(0, keys, PIPELINE):
            some = range(first, min(first + PIPELINE, keys))
            connection.sendall(b"".join(request(b"SET", b"%d" % key, value(key)) for key in some))
            done += sum(answers.readline() == b"+OK\r\n" for _ in some)
        order = list(range(keys))
        random.Random(0).shuffle(order)
        for first in range(0, keys, PIPELINE):
            some = order[first:first + PIPELINE]
            connection.sendall(b"".join(request(b"GET", b"%d" % key) for key in some))
            for key in some:
                if answers.readline() != b"$%d\r\n" % OCTETS or answers.read(OCTETS + 2)[:-2] != value(key):
                    wrong += 1
                read += 1
    print(f"set {done}, read {read}, wrong {wrong}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
