#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Beside a running QEMU (scripts/vm.sh): vm-watch.py MONITOR BASE LIMIT

Every five seconds, if QEMU has used next to no processor time meanwhile:

- A processor that is halted with interrupts on while its local APIC has one
  pending has lost it: QEMU 10's SVM clears its own interrupt flag outside the
  lock under which the timer's thread sets the one for real interrupts
  (do_vmexit), and the machine sleeps for ever.  Any other interrupt makes the
  APIC raise it again, so a key is pressed (Shift), and a line written to
  BASE.woken.
- If that does not help for 120 seconds, or the monitor says nothing, BASE.stands
  is made and QEMU ended: the emulator has died.  Any other machine that does
  nothing runs out of time: that would be the kernel's doing, or ours.

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


def ask(*commands):
    """What the monitor answers, without its line editing."""
    text = ""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(monitor)
        s.settimeout(1)
        for command in commands:
            s.sendall(command.encode() + b"\n")
            try:
                while data := s.recv(65536):
                    text += data.decode(errors="replace")
            except TimeoutError:
                pass
    return re.sub(r"\(qemu\) .*\x1b\[[KD].*", "", text.replace("\r", ""))


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
    """(halted, interrupts on, vectors pending) of each."""
    found = []
    for part in ask("info registers -a").split("CPU#")[1:]:
        regs = re.search(r"RFL=([0-9a-f]{8}).*HLT=(\d)", part)
        if not regs:
            continue
        lapic = ask(f"info lapic {part.split()[0]}")
        irr = re.search(r"^IRR\s+(.*)", lapic, re.M)
        found.append((regs[2] == "1", bool(int(regs[1], 16) & 0x200),
                      bool(irr and "none" not in irr[1])))
    return found


def lost():
    """Does a processor not see its interrupts, now and a second later?"""
    for _ in range(2):
        cpus = processors()
        if cpus and not any(all(cpu) for cpu in cpus):
            return False
        time.sleep(1)
    return True


def dump():
    with open(base + ".state", "w", encoding="utf-8") as f:
        f.write(ask(*("info cpus", "info registers -a", "info lapic", "info pic") * 2))


def watch():
    started = time.monotonic()
    still_since, before, at = started, 0.0, started
    while time.monotonic() - started < limit - 25:
        time.sleep(5)
        pid = qemu()
        if not pid:
            continue
        now, used = time.monotonic(), processor_time(pid)
        if used - before > BUSY * (now - at):
            still_since = now
        before, at = used, now
        if still_since == now:
            continue
        if not lost():
            still_since = now
            continue
        with open(base + ".woken", "a", encoding="ascii") as f:
            f.write(f"{now - started:.0f} s: an interrupt was lost\n")
        ask("sendkey shift")
        if now - still_since > 120:
            dump()
            with open(base + ".stands", "w", encoding="ascii"):
                pass
            os.kill(pid, signal.SIGABRT)
            return
    dump()


try:
    watch()
except (OSError, ProcessLookupError):
    # The machine has ended.
    pass
