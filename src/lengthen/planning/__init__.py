"""Will it fit? Memory, time and the longest context of a run, from its base's config alone."""

from lengthen.planning.devices import DEVICES, Device, find_device, this_device
from lengthen.planning.plan import Advice, Plan, plan

__all__ = ["DEVICES", "Advice", "Device", "Plan", "find_device", "plan", "this_device"]
