"""The words that journal, hooks, events and metrics have in common."""

from __future__ import annotations

import enum


class Point(enum.StrEnum):
    """Where hooks are run: the folders of hooks.d."""

    PRE_SEND = "pre-send"
    POST_SEND = "post-send"
    PRE_RECEIVE = "pre-receive"
    POST_RECEIVE = "post-receive"
    FAILED = "failed"
    FENCE = "fence"  # destination, Remus and COLO: before xl takes the end of the stream for the end of the source


class Role(enum.StrEnum):
    """Which end of the migration this host is."""

    SOURCE = "source"
    DESTINATION = "destination"


class Outcome(enum.StrEnum):
    """How a migration has ended, as far as this host knows."""

    PENDING = ""
    SUCCESS = "success"  # xl at the destination has reported 0
    FAILED = "failed"  # the domain does not run at the destination
    FAILED_OVER = "failed over"  # Remus, COLO: xl here has taken the end of the stream for the end of the source, and started its copy
    UNKNOWN = "unknown"  # it was cleared to run there, and no report came

    @property
    def label(self) -> str:
        """As events and metrics have it: one word."""
        return self.replace(" ", "_")
