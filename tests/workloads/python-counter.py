#!/usr/bin/python3
"""Counts into a file, one number per line; on SIGTERM reads the file back and judges every line.

Reports through the page that report.h lays out: the offsets below are its offsets.
"""
import argparse
import hashlib
import mmap
import os
import signal
import struct
import sys
import time

MAGIC, VERSION, SIZE = 0x54524F5045524450, 2, 4096
PID, PROGRESS, ERRORS, LONGEST_GAP, LONGEST_GAP_RESET = 16, 24, 32, 48, 56
GAP_REQUEST, GAP_DONE, RESTARTS, FINISHED, EXIT_CODE, ERROR_SEQUENCE = 64, 72, 80, 88, 96, 104
LAST_ERROR, FIRST_ERROR, NAME = 128, 384, 640


class Report:
    def __init__(self, path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(descriptor, SIZE)
        self.page = mmap.mmap(descriptor, SIZE)
        os.close(descriptor)
        restarts = self.get(RESTARTS) + 1 if self.get(0) == MAGIC else 0
        self.page[:] = bytes(SIZE)
        struct.pack_into("<II", self.page, 8, VERSION, SIZE)
        self.put(PID, os.getpid())
        self.put(RESTARTS, restarts)
        self.page[NAME:NAME + 14] = b"python-counter"
        self.put(0, MAGIC)

    def get(self, offset):
        return struct.unpack_from("<Q", self.page, offset)[0]

    def put(self, offset, value):
        struct.pack_into("<Q", self.page, offset, value)

    def error(self, text):
        data = text.encode()[:255]
        self.put(ERROR_SEQUENCE, self.get(ERROR_SEQUENCE) + 1)
        for offset in [LAST_ERROR] + ([] if self.get(ERRORS) else [FIRST_ERROR]):
            self.page[offset:offset + 256] = data.ljust(256, b"\0")
        self.put(ERROR_SEQUENCE, self.get(ERROR_SEQUENCE) + 1)
        self.put(ERRORS, self.get(ERRORS) + 1)

    def gap(self, nanoseconds):
        request = self.get(GAP_REQUEST)
        if request != self.get(GAP_DONE):
            self.put(LONGEST_GAP_RESET, 0)
            self.put(GAP_DONE, request)
            return
        for offset in (LONGEST_GAP, LONGEST_GAP_RESET):
            self.put(offset, max(self.get(offset), nanoseconds))


def judge(path, lines, report):
    with open(path, encoding="ascii") as written:
        found = 0
        for found, line in enumerate(written, 1):
            if line != f"{found}\n":
                report.error(f"line {found} holds {line!r}")
                break
    if found != lines:
        report.error(f"{lines} lines written, {found} found")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", required=True)
    parser.add_argument("--output", help="default: the report's name with .lines added")
    parser.add_argument("--max-seconds", type=int, default=900)
    arguments = parser.parse_args()
    path = arguments.output or arguments.report + ".lines"

    stop = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    report = Report(arguments.report)
    # A little of everything an interpreter keeps: a dictionary, strings, a running digest.
    numbers, digest = {}, hashlib.sha256()
    count, last = 0, time.monotonic_ns()
    end = time.monotonic() + arguments.max_seconds
    with open(path, "w", encoding="ascii") as output:
        while not stop and time.monotonic() < end:
            count += 1
            output.write(f"{count}\n")
            if count % 64 == 0:
                output.flush()
            digest.update(b"%d\n" % count)
            numbers[count % 50000] = str(count)
            if count >= 50000 and numbers[(count + 1) % 50000] != str(count - 49999):
                report.error(f"dictionary lost {count - 49999}")
            now = time.monotonic_ns()
            if now < last:
                report.error("the monotonic clock ran backwards")
            report.gap(now - last)
            last = now
            report.put(PROGRESS, count)
            if count % 64 == 0:
                time.sleep(0.001)
    judge(path, count, report)
    with open(path, "rb") as written:
        if hashlib.sha256(written.read()).digest() != digest.digest():
            report.error("the digest kept while counting is not that of the file")
    if not stop:
        report.error("still running after --max-seconds")
    code = 1 if report.get(ERRORS) else 0
    report.put(EXIT_CODE, code)
    report.put(FINISHED, 1)
    return code


if __name__ == "__main__":
    sys.exit(main())
