"""Bounded loops that keep a running process tidy: recovery, expiry, refreshes.

Promises: one job at a time of each kind, a failing job is logged and tried again, all stop when
told to; a duty is done by one process for all. Never: a decision of its own; it only schedules.
"""

from farebox.worker.duty import DUTY, Duty
from farebox.worker.expiry import KeyExpiry
from farebox.worker.loop import Job, Worker
from farebox.worker.watch import WATCH_CURSOR, RailWatch

__all__ = ["DUTY", "WATCH_CURSOR", "Duty", "Job", "KeyExpiry", "RailWatch", "Worker"]
