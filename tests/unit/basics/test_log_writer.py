"""Lines leave without anybody who logs waiting for who reads them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from sidecar.basics.log_writer import LogWriter


@pytest.fixture
def pipe() -> tuple[int, int]:
    return os.pipe()


def read_all(reading: int) -> bytes:
    found = b""
    while part := os.read(reading, 65_536):
        found += part
    return found


def test_lines_come_out_whole_and_in_order(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing)
    lines = [b"line %d\n" % n for n in range(10_000)]
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(read_all(reading)))
    reader.start()

    for line in lines:
        writer.write_bytes(line)
    assert writer.drain(10)
    os.close(writing)
    reader.join()

    assert found == [b"".join(lines)]
    assert writer.dropped == 0


def test_nobody_waits_for_a_reader_who_does_not_read(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing, waiting_bytes_max=100_000)

    for _ in range(10_000):
        writer.write("x" * 99 + "\n")

    assert not writer.drain(0.01)
    assert writer.dropped > 7_000, "what found no room is counted"
    reader = threading.Thread(target=read_all, args=(reading,))
    reader.start()
    assert writer.drain(10), "who reads again gets the rest"
    writer.write("later\n")
    assert writer.drain(10)
    os.close(writing)
    reader.join()


def test_lines_for_a_reader_who_has_gone_are_counted(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.close(reading)
    writer = LogWriter(writing)

    writer.write("one\n")
    assert writer.drain(10)
    writer.write("two\n")
    assert writer.drain(10)

    assert writer.dropped == 2
    os.close(writing)


def test_a_descriptor_that_somebody_made_non_blocking_loses_nothing(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(writing, False)
    writer = LogWriter(writing)
    for _ in range(3_000):
        writer.write("x" * 99 + "\n")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(read_all(reading)))
    reader.start()
    assert writer.drain(30)
    os.close(writing)
    reader.join()
    assert len(found[0]) == 300_000


def test_the_last_lines_of_a_process_are_written_and_its_end_waits_for_no_reader() -> None:
    program = (
        "import sys; from sidecar.app import logs; from sidecar.basics.logger import get_logger\n"
        "logs.configure('info', 'json', waits=False); log = get_logger('x')\n"
        "[log.info('line', number=n) for n in range(int(sys.argv[1]))]"
    )
    done = subprocess.run([sys.executable, "-c", program, "100"], capture_output=True, check=True, timeout=60)
    assert done.stderr.count(b"\n") == 100
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", program, "5000"], stderr=writing)
    os.close(writing)
    assert process.wait(60) == 0, "nobody reads its lines"
    os.close(reading)
