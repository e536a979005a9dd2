"""A signal that ends this process is noticed wherever the kernel delivers it."""

import subprocess
import sys
from textwrap import dedent

PROGRAM = """
    import queue, signal, subprocess, threading, time
    from rc_tasks.tools import interrupt

    def again():
        print("again")
        twice.set()

    twice = threading.Event()
    interrupt.raise_once({signal.SIGTERM, signal.SIGINT}, lambda: print("before"), again)

    def deliver_here():
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        threading.Event().wait()

    threading.Thread(target=deliver_here, daemon=True).start()
    try:
        queue.Queue().get()
    except KeyboardInterrupt:
        print("raised")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.raise_signal(number)
    print("not again")
    status = subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True)
    ignored = int(status.stdout.split()[1], 16)
    both = (signal.SIGTERM, signal.SIGINT)
    time.sleep(0.3)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    twice.wait(20)
    print("ignored by a child:", [each.name for each in both if ignored >> each - 1 & 1])
"""


def test_a_signal_that_another_thread_gets() -> None:
    done = subprocess.run(
        [sys.executable, "-c", dedent(PROGRAM)], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "before\nraised\nnot again\nagain\nignored by a child: []\n"
    assert done.stderr == ""
