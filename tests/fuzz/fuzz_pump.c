/*
 * The whole engine at the end of a socket: a peer who has the keys seals what the input says and writes it in pieces, or writes what nobody has sealed.
 * Headers, tags, elided and compressed content, the session, the pipes. One lane, so that no thread makes a run another one.
 *
 * Input: a byte for role and compression; then operations.
 */
#define _GNU_SOURCE
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <sys/socket.h>

#include "../../csrc/compress.h"
#include "../../csrc/elide.h"

enum { WINDOW = 4096, PAYLOAD = 1200, RUNS = 64 };

static int channels[3][2];      /* pipes: the pump's end, ours; made once, and emptied before each run */
static uint8_t buffer[XS_HEADER_LEN + PAYLOAD + XS_TAG_LEN];

static void make_pipes(void)
{
    for (int c = 0; c < 3; c++)
        CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, channels[c]) == 0);
}

static size_t empty(int fd)
{
    static uint8_t sink[1 << 16];
    size_t sum = 0;
    ssize_t n;

    while ((n = read(fd, sink, sizeof(sink))) > 0)
        sum += (size_t)n;
    return sum;
}

static struct xs_link *link_of(int role)
{
    struct xs_link_keys k;

    memset(k.send_key, 1 + role, sizeof(k.send_key));
    memset(k.receive_key, 2 - role, sizeof(k.receive_key));
    memset(k.send_iv, 3 + role, sizeof(k.send_iv));
    memset(k.receive_iv, 4 - role, sizeof(k.receive_iv));
    return xs_link_new("libcrypto", &k, 1000);
}

/* A frame of the input's, sealed; its length, 0 where nobody could seal it. */
static size_t seal(struct input *in, struct xs_link *link, uint64_t *sent)
{
    static const uint8_t types[8] = { XS_DATA, XS_DATA, XS_DATA, XS_ACK, XS_END, XS_KEEPALIVE, XS_EXIT, XS_ABORT };
    uint8_t how = take8(in);
    uint8_t more = take8(in);
    struct xs_header h = { .type = types[how % 8], .channel = how / 8 % 3, .flags = how / 32 };
    size_t len, content;
    static uint8_t payload[PAYLOAD];
    const uint8_t *bytes;

    if (more == 0xff)
        h.type = take8(in);
    len = h.type == XS_DATA ? take16(in) % (PAYLOAD / 2) : more % 8;
    bytes = take_bytes(in, &len);
    if (h.type != XS_DATA)
        h.flags = 0;
    memcpy(payload, bytes, len);
    h.length = (uint32_t)len;
    h.offset = h.type == XS_DATA || h.type == XS_END ? sent[h.channel] : 0;
    if (more == 0xfe)
        h.offset += take8(in);
    if (more == 0xfd && h.type == XS_ACK)
        h.offset = take16(in);
    if (xs_link_seal(link, &h, payload, buffer) != XS_OK)
        return 0;
    if (h.type == XS_DATA) {
        content = h.flags & XS_ELIDED ? xs_elide_measure(payload, len) : h.flags & XS_COMPRESSED ? xs_compress_measure(payload, len) : len;
        sent[h.channel] += content;
    }
    return XS_HEADER_LEN + len + XS_TAG_LEN;
}

/* Run until there is nothing to do. Returns 0 once the session is over, for us or for the peer. */
static int run(struct xs_pump *pump, int role)
{
    for (int n = 0; n < RUNS; n++) {
        int event = xs_pump_run(pump, 0);

        CHECK(event >= 0);
        if (event == XS_EV_TIMEOUT)
            return 1;
        if (event == XS_EV_LOST || event == XS_EV_ABORTED || event == XS_EV_ENDED)
            return 0;
        CHECK(event == XS_EV_PHASE || (role == XS_DESTINATION && (event == XS_EV_INPUT_ENDED || event == XS_EV_OUTPUTS_ENDED)));
    }
    CHECK(0);                   /* it never has nothing to do */
    return 0;
}

static int step(struct input *in, struct xs_pump *pump, struct xs_link *link, int sock, int role, uint64_t *sent)
{
    uint8_t how = take8(in);
    const uint8_t *bytes;
    size_t len, part;
    unsigned channel = how / 16 % 3;

    switch (how % 8) {
    case 0:
        (void)empty(channels[channel][1]);
        return run(pump, role);
    case 1:
        len = how / 8;
        bytes = take_bytes(in, &len);
        (void)!write(channels[channel][1], bytes, len);
        return run(pump, role);
    case 2:
        if (how == 0xfa) {
            len = take8(in);
            bytes = take_bytes(in, &len);
            (void)!write(sock, bytes, len);
            return run(pump, role);
        }
        if (role == XS_DESTINATION && how > 0x80) {
            (void)xs_pump_end_input(pump, how % 2 + 1);
            (void)xs_pump_exit(pump, 0, how);
        }
        return run(pump, role);
    default:
        len = seal(in, link, sent);
        part = how > 0xf0 ? xs_min(take8(in), len) : 0;
        if (part > 0) {
            (void)!write(sock, buffer, part);
            if (!run(pump, role))
                return 0;
        }
        if (how == 0xff && len > part)
            buffer[len - 1] ^= 1;
        (void)!write(sock, buffer + part, len - part);
        (void)empty(sock);
        return run(pump, role);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };
    uint8_t how = take8(&in);
    int role = how & 1 ? XS_SOURCE : XS_DESTINATION, pair[2], going_on = 1;
    struct xs_pump_options o = {
        .role = role,
        .wake_fd = -1,
        .send_window = { WINDOW, WINDOW, WINDOW },
        .receive_window = { WINDOW, WINDOW, WINDOW },
        .elide = how / 2 % 2,
        .compress = how / 4 % 2 ? XS_COMPRESS_ZSTD : XS_COMPRESS_OFF,
    };
    struct xs_pump *pump;
    struct xs_link *link = link_of(1 - role);
    struct xs_stats st;
    uint64_t sent[3] = { 0 }, out[3] = { 0 };

    if (channels[0][0] == 0)
        make_pipes();
    for (int c = 0; c < 3; c++) {
        o.channel_fd[c] = channels[c][0];
        for (int end = 0; end < 2; end++)
            (void)empty(channels[c][end]);
    }
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
    pump = xs_pump_new(&o);
    CHECK(pump != NULL && link != NULL && xs_pump_attach(pump, link_of(role), pair[0]) == XS_OK);
    while (in.left > 0 && going_on)
        going_on = step(&in, pump, link, pair[1], role, sent);
    xs_pump_stats(pump, &st);
    for (unsigned c = 0; c < 3; c++) {
        if ((c == 0) != (role == XS_SOURCE))
            CHECK(st.channel_bytes[c] <= sent[c] && st.delivered[c] <= st.channel_bytes[c]);    /* no more than was sealed */
        out[c] = empty(channels[c][1]);
        CHECK(out[c] <= st.delivered[c]);
    }
    xs_pump_free(pump);
    xs_link_free(link);
    CHECK(close(pair[0]) == 0 && close(pair[1]) == 0);
    return 0;
}
