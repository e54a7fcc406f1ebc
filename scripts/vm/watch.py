#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Beside a running QEMU (scripts/vm/vm.sh): watch.py MONITOR BASE LIMIT

Every two seconds:

- A processor whose local APIC has an interrupt pending, and that does not take
  it, has lost it: QEMU 10's SVM clears its own interrupt flag outside the lock
  under which the timer's thread sets the one for real interrupts (do_vmexit).
  If it is halted, the machine sleeps for ever; if it runs a guest, that may go on
  without a timer until it is idle, and then both kernels find that they were
  locked up.  Any other interrupt makes the APIC raise it again, so a key is pressed
  (Shift), and a line written to BASE.woken.
- If a halted machine is not woken by that for 120 seconds, or the monitor says
  nothing, BASE.stands is made and QEMU ended: the emulator has died.  Any other
  machine that does nothing runs out of time: that would be the kernel's doing,
  or ours.
- If the two seconds were ten and more, or the machine slept for that long until
  it could be woken, then a clock in it jumped: its kernel may say that it was
  locked up, and its job that something took too long.  A line is written to
  BASE.stalled (what follows from it: scripts/vm/machine.sh).

The processors' state goes to BASE.state then, and 25 seconds before LIMIT.
"""

import glob
import os
import re
import signal
import socket
import sys
import time

monitor, base, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
BUSY = 0.05
PERIOD = 2
LONG = 10


def ask(*commands):
    """What the monitor answers, without its line editing."""
    text = ""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(monitor)
        s.settimeout(5)
        for command in (None, *commands):
            if command:
                s.sendall(command.encode() + b"\n")
            answer = b""
            try:
                # The echo of a command has a prompt before it, not behind.
                while not answer.endswith(b"\n(qemu) ") and answer != b"(qemu) ":
                    data = s.recv(65536)
                    if not data:
                        break
                    answer += data
            except TimeoutError:
                pass
            text += answer.decode(errors="replace")
    return re.sub(r"\(qemu\) (.*\x1b\[[KD])?.*", "", text.replace("\r", ""))


def qemu():
    """The only one that this process namespace knows."""
    for comm in glob.glob("/proc/[0-9]*/comm"):
        with open(comm, encoding="ascii") as f:
            if f.read().strip() == "qemu-system-x86":
                return int(comm.split("/")[2])
    return None


def processor_time(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def processors():
    """Of each: halted with interrupts on; vectors pending; and the same if its
    timer has expired and was not set again, with how it was set."""
    found = []
    for part in ask("info registers -a").split("CPU#")[1:]:
        regs = re.search(r"RFL=([0-9a-f]{8}).*HLT=(\d)", part)
        if not regs:
            continue
        lapic = ask(f"info lapic {part.split()[0]}")
        irr = re.search(r"^IRR\s+(.*)", lapic, re.M)
        vectors = re.findall(r"\b\d+", irr[1]) if irr else []
        timer = re.search(r"initial_count = (\d+) +current_count = 0$", lapic, re.M)
        found.append((regs[2] == "1" and bool(int(regs[1], 16) & 0x200), set(vectors),
                      {(v, timer[1]) for v in vectors} if timer else set()))
    return found


def lost(idle):
    """Does a processor not see an interrupt, now and for a second?  In an idle
    machine, one that is halted; in a busy one, that of its timer.  An idle
    machine whose monitor says nothing counts as one."""
    waiting = []
    for again in range(4):
        if again:
            time.sleep(0.3)
        now = [(vectors if halted else set()) if idle else expired
               for halted, vectors, expired in processors()]
        if not now:
            continue
        waiting = [a & b for a, b in zip(waiting or now, now)]
        if not any(waiting):
            return False
    return idle or bool(waiting)


def clocks():
    """A virtual computer that was halted may find that out from some only."""
    return [time.clock_gettime(c) for c in
            (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME, time.CLOCK_REALTIME)]


def note(suffix, line):
    with open(base + suffix, "a", encoding="ascii") as f:
        f.write(line + "\n")


def dump():
    with open(base + ".state", "w", encoding="utf-8") as f:
        f.write(ask(*("info cpus", "info registers -a", "info lapic", "info pic") * 2))


def watch():
    started = time.monotonic()
    still_since, before, at = started, 0.0, started
    while time.monotonic() - started < limit - 25:
        asleep = clocks()
        time.sleep(PERIOD)
        now = time.monotonic()
        gap = max(b - a for a, b in zip(asleep, clocks()))
        if gap > LONG:
            note(".stalled", f"{now - started:.0f} s: the computer stood still "
                 f"for {gap:.0f} s")
        pid = qemu()
        if not pid:
            continue
        used = processor_time(pid)
        if used - before > BUSY * (now - at):
            still_since = now
        before, at = used, now
        idle = still_since < now
        if not lost(idle):
            still_since = now
            continue
        note(".woken", f"{now - started:.0f} s: an interrupt was lost"
             f"{'' if idle else ' by a busy processor'}")
        if now - still_since > LONG:
            note(".stalled", f"{now - started:.0f} s: the machine slept "
                 f"for {now - still_since:.0f} s")
        ask("sendkey shift")
        if now - still_since > 120:
            dump()
            note(".stands", "")
            os.kill(pid, signal.SIGABRT)
            return
    dump()


try:
    watch()
except (OSError, ProcessLookupError):
    # The machine has ended.
    pass
