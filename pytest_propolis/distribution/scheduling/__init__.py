"""The scheduler of a run: which test runs where and when, and where templates are made."""

from .decision import BuildTemplate, Decision, EndWorker, Relocate, Start
from .host import HostSpec
from .item import Item
from .needs import Needs
from .protocol import Scheduler
from .scheduler import FleetScheduler

__all__ = [
    "BuildTemplate",
    "Decision",
    "EndWorker",
    "FleetScheduler",
    "HostSpec",
    "Item",
    "Needs",
    "Relocate",
    "Scheduler",
    "Start",
]
