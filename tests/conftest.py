"""What all tests share: signals end this process, and those that it starts, as they do at a terminal.

A shell starts its background jobs with Ctrl-C ignored, and so does `nohup` with SIGHUP; children inherit that.
"""

from __future__ import annotations

import signal

for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
