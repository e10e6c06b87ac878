"""Every bound of the protocol and its processes: unit, reason, source.

The bounds of the C engine (payload, header, tag) stand in csrc/engine.h; a test compares those that both sides name.
"""

from typing import Final

# RFC 9257 section 4.1 asks for at least 128 bits of entropy in an external PSK; 256 leaves 128 against Grover's search.
LINK_KEY_LEN: Final = 32  # bytes
# Typed or pasted by a person, once, for minutes: 128 random bits cannot be guessed, so no PAKE is needed.
TOKEN_SECRET_LEN: Final = 16  # bytes
KEY_ID_LEN: Final = 16  # bytes; 2^64 link keys before two ids are likely to be equal
PIN_LEN: Final = 32  # bytes: SHA-256 of the SubjectPublicKeyInfo, as in RFC 7469 section 2.4
CHALLENGE_LEN: Final = 32  # bytes; like the Random of RFC 8446 section 4.1.2
EXPORTER_LEN: Final = 64  # bytes; more than the 48 of the widest TLS 1.3 secret (SHA-384), so nothing is cut off
MAC_LEN: Final = 32  # bytes: HMAC-SHA-256, untruncated
LANES_MAX: Final = 8  # links of a session at once: more cores than that have no share in one migration; 2 MiB of buffers each
SESSION_ID_LEN: Final = 16  # bytes; random, names a session in logs and in the journal

FRAME_KEY_LEN: Final = 32  # bytes: AES-256
FRAME_IV_LEN: Final = 12  # bytes: the 96 bits that NIST SP 800-38D section 8.2.1 recommends
FRAME_HEADER_LEN: Final = 16  # bytes, F1
FRAME_TAG_LEN: Final = 16  # bytes: the full GCM tag
PAYLOAD_MAX: Final = 1 << 20  # bytes, F2; what a receiver must hold before it can check a tag
CONTROL_PAYLOAD_MAX: Final = 4096  # bytes; OPEN with its path and REFUSE with its text need less
RATCHET_BLOCKS: Final = 1 << 32  # AES blocks a key (64 GiB), F4; NIST SP 800-38D bounds a message at 2^32 - 2 blocks
# and RFC 8446 section 5.5 a key at 2^24.5 full records (362 GiB): a large guest passes both.
REASON_TEXT_MAX: Final = 1024  # bytes of text in REFUSE and ABORT: one line for an operator

MESSAGE_MAX: Final = 4096  # bytes of one handshake message: eight addresses of 255 bytes and a name fit twice
HANDSHAKE_BYTES_MAX: Final = 1 << 16  # bytes taken from a peer before it has proved anything: a long CA chain is 10 to 20 KiB
HANDSHAKE_SECONDS: Final = 10.0  # for TLS and the proofs together; five round trips on the worst WAN take 3 s
TLS_RECORD_MAX: Final = 5 + (1 << 14) + 256  # bytes: header + TLSCiphertext of RFC 8446 section 5.2

NAME_MAX: Final = 255  # bytes of a host's name: RFC 1035 section 2.3.4
ADDRESSES_MAX: Final = 8  # addresses of a host in a token or hello: two stacks on four networks
CERTIFICATE_NAMES_MAX: Final = 64  # names of a certificate in CA mode; with 255 bytes each, half of LAUNCHER_MESSAGE_MAX
PATH_MAX: Final = 255  # bytes of the COLO script's path in a request: one vec8
VERBOSITY_MAX: Final = 16  # `-v` given to the remote xl; its log level ends at 3 of them (xtl_level in xen.git)

WINDOW: Final = 64 << 20  # bytes unacknowledged on channel 0: 10 Gbit/s across 50 ms; held on both sides, F8
REMUS_WINDOW: Final = 1 << 20  # bytes; a Remus checkpoint counts as sent once we hold it, so hold little
BACK_WINDOW: Final = 256 << 10  # bytes on channels 1 and 2: xl's answers are 200 bytes, its -vvv log some tens of KiB
WINDOW_MIN: Final = 64 << 10  # bytes; less than one pipe's content only costs round trips

BWLIMIT_MIN: Final = 64 << 10  # bytes a second; a frame of 512 KiB then takes 8 s, and a guest of 1 GiB 5 hours: less is a slip of the hand
BWLIMIT_MAX: Final = 1 << 40  # bytes a second: more than any link has

KEEPALIVE_SECONDS: Final = 5.0  # F10; NAT and firewall state lives 60 s or longer for established TCP
# Three keepalives and their way: a dead path is found before anybody asks, and a lost link costs a new one, not the migration.
SILENCE_SECONDS: Final = 15.0
RESUME_SECONDS: Final = 60.0  # a switch that restarts its spanning tree takes 50 s (IEEE 802.1D-1998, 8.10), a bond or a route less
FINAL_SECONDS: Final = 3600.0  # a host that has to be restarted by hand, by somebody who was asleep, is back by then
ENDLESS_SECONDS: Final = 10**9  # 31 years
RESUME_PAUSE_SECONDS: Final = 0.2  # before the second attempt to connect anew; doubled for each further one, up to the next
RESUME_PAUSE_MAX_SECONDS: Final = 2.0
RESUME_ATTEMPT_SECONDS: Final = 5.0  # for one connection before the next is tried: SYN goes out at 0, 1 and 3 s (RFC 6298)

GUARD_LOOK_SECONDS: Final = 5.0  # between two looks at the route, for what the kernel gives no word of (an ICMP redirect); one request of 1 ms
GUARD_STEADY_SECONDS: Final = 6.0  # without an alarm before a way is used again: arpspoof says its forgery every 2 s, parasite6 every 5 s
GUARD_END_SECONDS: Final = 2.0  # for its last look when all is over: four times what importing pyroute2 takes
GUARD_REPEAT_SECONDS: Final = 60.0  # before an alarm that came, went and came again is said anew: arpspoof and the true host answer every 2 s

PORT: Final = 8003  # TCP; the port that xend used for relocation over TLS (xend-relocation-ssl-server, xend-config.sxp)
TOKEN_TTL_SECONDS: Final = 600  # a person copies a token from one terminal to another
TOKEN_TTL_MAX_SECONDS: Final = 7 * 86400  # a secret that lies about for longer is no longer one
INVITATION_KEPT_SECONDS: Final = 86400  # after expiry, so that a late join is told "expired" and not "unknown"

UNAUTHENTICATED_MAX: Final = 64  # connections at once that have proved nothing; each costs a process for at most 10 s
UNAUTHENTICATED_PER_ADDRESS_MAX: Final = 8  # ... from one address: evacuating a host opens one a domain, briefly
# Before a source that was turned away unheard tries again; doubled each time, and up to half of it more or less. A handshake in a data centre takes
# some 50 ms, so there is room again after one or two.
TURNED_AWAY_PAUSE_SECONDS: Final = 0.1
TURNED_AWAY_PAUSE_MAX_SECONDS: Final = 2.0  # as RESUME_PAUSE_MAX_SECONDS
SESSIONS_MAX: Final = 64  # receives at once; each may hold WINDOW bytes: 4 GiB in the worst case
LAUNCHER_MESSAGE_MAX: Final = 1 << 15  # bytes of one message between receiver and launcher: two hellos and a domain's name
DOMAIN_NAME_MAX: Final = 255  # bytes; xl's own names are shorter, and a receiver that was taken over must not fill the journal
DOMAIN_MEMORY_MAX: Final = 1 << 52  # bytes; what any CPU that Xen runs on can address (Intel SDM volume 3A, 4.1.4)
CONFIGURATION_MAX: Final = 1 << 20  # bytes of a domain's configuration that hooks are shown: XS_XL_HEAD_MAX of csrc/engine.h; xl writes some KiB
CONFIGURATION_DEPTH_MAX: Final = 32  # objects and lists in each other; libxl's go six deep, and Python's stack is finite
LINK_KEY_AGE_DAYS: Final = 365  # after that `doctor` asks for a new one: NIST SP 800-57 part 1, 5.3.6, gives a key-derivation key about a year
CERTIFICATE_LEFT_DAYS: Final = 30  # before a certificate's end `doctor` warns: as long as a CA's office may take
CLOCK_SKEW_SECONDS: Final = 30  # between two hosts: with NTP it is below one; tokens live for minutes, and a CA's certificates begin at once
CHECK_SECONDS: Final = 20.0  # for a destination's answer to CHECK: two commands of xl's, with as much again for a host that is busy
CHECKS_MAX: Final = 4  # CHECKs answered at once: each costs a start of xl's, and who asks while a host is emptied asks once a domain
CHECK_REPORT_MAX: Final = 8192  # bytes of the answer to CHECK: its texts and a refusal, all of the greatest length, need 6 KiB
CHECK_TEXT_MAX: Final = 255  # bytes of a text in it: one vec8; a CPU's name has 64
CHECK_FAULTS_MAX: Final = 4  # faults of its own that a destination names in it: an operator mends the first, and asks again
CHECK_CIPHERS_MAX: Final = 8  # AEAD backends that it has; there are two
XL_SECONDS: Final = 10.0  # for a command of xl's that only looks; xl waits for xenstored without an end, and somebody waits for us
XL_INFO_SECONDS: Final = 5.0  # for `xl info`, which asks the hypervisor alone
PROMISE_SECONDS: Final = 30.0  # for those that come before to be promised their memory: each asks xl twice, 15 s where it hangs
XL_OUTPUT_MAX: Final = 4 << 20  # bytes that such a command may print: a configuration is at most 1 MiB, and `xl list -l` indents it
CONFIGURATION_SECONDS: Final = 10.0  # from a stream's first byte to the end of the configuration, which xl writes at once: as HANDSHAKE_SECONDS
POLICY_VALUE_MAX: Final = 100  # characters of a value, and of a rule's list, in a refusal: key, value and rule in one line of REASON_TEXT_MAX
POLICY_MEMORY_MAX: Final = 1 << 30  # MiB of a domain that a policy may name: a pebibyte, more than any host has
POLICY_VCPUS_MAX: Final = 32768  # of a domain: XEN_LEGACY_MAX_VCPUS is 32, HVM_MAX_VCPUS 128, and the wire formats have room for 32768
POLICY_DOMAINS_MAX: Final = 4096  # that a peer may be sending at once: as [receive] sessions
POLICY_PATTERNS_MAX: Final = 256  # patterns of one key of [policy]: each is tried for each disk of a domain
HOOK_SECONDS: Final = 30.0  # for one hook; a source's xl that waits for one has no time-out of its own
HOOK_TERM_SECONDS: Final = 2.0  # from SIGTERM to SIGKILL; as long as xl gives its transport
HOOK_LINES_MAX: Final = 200  # lines of a hook's output in our log; the rest is left out
HOOK_LINE_MAX: Final = 512  # bytes of one of them; half of REASON_TEXT_MAX, for a refusal carries the last one
INTERRUPTIONS_MAX: Final = 20  # lost links of a session that its journal names, and as many resumptions: half of the space set aside for it
PEER_WORDS_MAX: Final = 8  # of a source on one session that are kept: it asks again while it does not know, and then once or twice
EXIT_GRACE_SECONDS: Final = 5.0  # after xl's end, for a child of its that keeps its output open
