"""What an operator watches: whether a house can serve, its metrics, its traces.

Promises: looking costs the requests nothing they would notice; a probe is answered from memory;
labels are bounded, and name mints, upstreams and jobs that the settings name; money is told as
whole numbers. Never: a decision about money; an account, a path, a token or a key in what is told;
a library of monitoring imported anywhere else.
"""

from farebox.operating.door import OperatorDoor, ready
from farebox.operating.doors import Doors
from farebox.operating.findings import Finding, Verdict
from farebox.operating.metrics import Metrics
from farebox.operating.vitals import Parts, Vitals

__all__ = ["Doors", "Finding", "Metrics", "OperatorDoor", "Parts", "Verdict", "Vitals", "ready"]
