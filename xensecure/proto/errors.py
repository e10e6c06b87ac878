"""Every error that xensecure raises on purpose.

    XensecureError
    ├── LocalError                  this host: a person here can mend it
    │   ├── UsageError              the command line
    │   ├── ConfigurationError      the configuration file
    │   ├── StateError              identity, peers, invitations
    │   ├── SystemFailure           the operating system said no
    │   └── HookError               a hook of this host's operator refuses, or cannot be trusted
    ├── PeerError                   the other side, or whoever answers in its place
    │   ├── ProtocolError           breaks docs/protocol.md
    │   ├── AuthenticationError     not proved to be the peer
    │   ├── RefusedError            proved to be the peer, and says no (carries a Reason)
    │   └── TokenError              an invitation that cannot be used
    └── LinkError                   the network
        ├── ConnectError            no connection, or none in time
        └── LinkLostError           a connection that ended too early
            └── TurnedAwayError     ... before the other side had sent a byte: it has no room just now, as a rule

A message is one line: what is wrong, then after a semicolon what to do. The commands print it behind their name and exit with
``exit_code``; only ``xensecure`` itself exits with 255 for all of them, as ssh does, for its other statuses are the remote xl's.
"""

from __future__ import annotations

import enum
from typing import ClassVar

TRANSPORT_FAILURE = 255  # exit status of `xensecure` when it fails itself; ssh(1) uses the same


class XensecureError(Exception):
    """The root of the tree above; its text is one line for the operator."""

    exit_code: ClassVar[int] = 1


class LocalError(XensecureError):
    """Something on this host."""


class UsageError(LocalError):
    """A command line that means nothing to us."""

    exit_code = 2


class ConfigurationError(LocalError):
    """A configuration file that is wrong or unsafe."""

    exit_code = 3


class StateError(LocalError):
    """Identity, peer or invitation files that are missing, damaged or unsafe."""

    exit_code = 4


class SystemFailure(LocalError):
    """A system call that failed for a reason outside the protocol."""

    exit_code = 5


class HookError(LocalError):
    """A hook that refuses, or one that others could have changed."""

    exit_code = 6


class PeerError(XensecureError):
    """Something the other side did."""


class ProtocolError(PeerError):
    """Bytes that docs/protocol.md does not allow."""

    exit_code = 10


class Cause(enum.StrEnum):
    """Why somebody has not proved to be the peer: for events and metrics."""

    UNKNOWN_KEY = "unknown_key"
    WRONG_PROOF = "wrong_proof"
    WRONG_TLS_KEY = "wrong_tls_key"
    WRONG_CERTIFICATE = "wrong_certificate"
    TLS = "tls"  # TLS came to no end, or without a certificate
    NOT_ACCEPTED = "not_accepted"  # the other side does not take us for its peer
    KEY_REPLACED = "key_replaced"  # the link key was renewed, or the peer forgotten, at this very moment
    IDENTITY_CHANGED = "identity_changed"  # of this host, since its daemons have started
    WRONG_CHALLENGE = "wrong_challenge"  # a receiver that was taken over
    MALFORMED = "malformed"


class AuthenticationError(PeerError):
    """The other side has not proved to be the peer, or does not take us for one.

    ``impostor``: it is somebody else, by what it has shown.
    """

    exit_code = 11

    def __init__(self, message: str, *, impostor: bool = False, cause: Cause = Cause.TLS) -> None:
        super().__init__(message)
        self.impostor = impostor
        self.cause = cause


class RefusedError(PeerError):
    """The authenticated peer refuses."""

    exit_code = 12

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class TokenError(PeerError):
    """A token that cannot be used."""

    exit_code = 13


class LinkError(XensecureError):
    """Something between the hosts."""


class ConnectError(LinkError):
    """No connection, or none in time.

    ``silent``: the connection stands, and what was sent over it was not answered.
    """

    exit_code = 20

    def __init__(self, message: str, *, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


class LinkLostError(LinkError):
    """A connection that ended before its session did."""

    exit_code = 21


class TurnedAwayError(LinkLostError):
    """A connection that ended before the other side had sent a byte: nothing has come of it, and it may be tried again."""

    exit_code = 22


class Reason(enum.IntEnum):
    """Why a peer refuses or aborts: the reasons of docs/protocol.md, section 4."""

    PROTOCOL = 1
    INVITATION_USED = 2
    INVITATION_EXPIRED = 3
    NOT_ALLOWED = 4
    TOO_MANY = 5
    XL_FAILED = 6
    LAUNCHER_LOST = 7
    STOPPED = 8
    LOCAL_FAULT = 9
    NOT_CLEARED = 10  # ABORT of a destination that has GO and does not deliver it
