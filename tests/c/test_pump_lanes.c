/* Pumps with several lanes and their threads, over socket pairs: lanes cut, changed and killed while a stream runs. Run it under TSan too. */
#define _GNU_SOURCE
#include "rig.h"

#include <pthread.h>

enum { PIECE = 1 << 16 };

/* One lane between the two pumps: two socket pairs with a thread between them that carries bytes, or does something to them. */
struct wire {
    int end[2], middle[2];      /* the pumps' ends; ours */
    pthread_t thread;
    uint64_t cut_at;            /* after so many bytes from the source it closes; UINT64_MAX: never */
    uint64_t flip_at;           /* the byte from the source that it changes */
    uint64_t stop_at;           /* after so many bytes from the source it carries no more of them, and does not close */
};

struct end {
    struct rig *rig;
    int side, last;
    int lost[16], losses;       /* reasons of the lanes that were lost */
    pthread_t thread;
};

struct test {
    struct rig rig;
    struct wire wire[XS_LANES_MAX];
    unsigned lanes;
    struct end end[2];
    uint64_t total, got;
    pthread_t writer, reader;
};

static void send_all(int fd, const uint8_t *bytes, size_t len)
{
    while (len > 0) {
        ssize_t n = send(fd, bytes, len, MSG_NOSIGNAL);

        if (n <= 0)
            return;             /* the other end is gone: what it does not want is nobody's */
        bytes += n;
        len -= (size_t)n;
    }
}

static void *carry(void *argument)
{
    static __thread uint8_t piece[PIECE];
    struct wire *w = argument;
    struct pollfd slot[2] = { { .fd = w->middle[0], .events = POLLIN }, { .fd = w->middle[1], .events = POLLIN } };
    uint64_t up = 0;

    while (slot[0].fd >= 0 || slot[1].fd >= 0) {
        CHECK(poll(slot, 2, -1) > 0);
        for (int i = 0; i < 2; i++) {
            ssize_t n = slot[i].fd >= 0 && slot[i].revents != 0 ? recv(w->middle[i], piece, sizeof(piece), 0) : -2;

            if (n == -2)
                continue;
            if (n <= 0) {
                shutdown(w->middle[1 - i], SHUT_WR);
                slot[i].fd = -1;
                continue;
            }
            if (i == 0 && w->flip_at >= up && w->flip_at < up + (uint64_t)n)
                piece[w->flip_at - up] ^= 4;
            up += i == 0 ? (uint64_t)n : 0;
            send_all(w->middle[1 - i], piece, (size_t)n);
            if (up >= w->stop_at)
                slot[0].fd = -1;
            if (up >= w->cut_at) {
                shutdown(w->middle[0], SHUT_RDWR);
                shutdown(w->middle[1], SHUT_RDWR);
                return NULL;
            }
        }
    }
    return NULL;
}

static struct xs_link *lane_link(int side, unsigned lane)
{
    struct xs_link_keys k = keys_of(side);

    for (int i = 0; i < 32; i++)
        k.send_key[i] ^= (uint8_t)(lane << 4), k.receive_key[i] ^= (uint8_t)(lane << 4);
    return xs_link_new(NULL, &k, 1ULL << 32);
}

static void add_lane(struct test *t)
{
    unsigned l = t->lanes++;
    struct wire *w = &t->wire[l];

    for (int i = 0; i < 2; i++) {
        int pair[2];

        CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        w->end[i] = pair[0];
        w->middle[i] = pair[1];
        nonblocking(w->end[i]);
        CHECK(xs_pump_attach(t->rig.pump[i], lane_link(i, l), w->end[i]) == XS_OK);
    }
    CHECK(pthread_create(&w->thread, NULL, carry, w) == 0);
}

static void *write_stream(void *argument)
{
    static uint8_t block[1 << 20];
    struct test *t = argument;
    uint64_t seed = 5;

    for (uint64_t done = 0; done < t->total;) {
        size_t len = 1 + random_below(&seed, random_below(&seed, 2) == 0 ? sizeof(block) : 5000);

        len = len < t->total - done ? len : (size_t)(t->total - done);
        for (size_t i = 0; i < len; i++)
            block[i] = stream_byte(done + i);
        for (size_t at = 0; at < len;) {
            ssize_t n = write(t->rig.xl_in[0][1], block + at, len - at);

            if (n < 0)
                return NULL;
            at += (size_t)n;
        }
        done += len;
    }
    close_fd(&t->rig.xl_in[0][1]);
    return NULL;
}

static void *read_stream(void *argument)
{
    static uint8_t block[1 << 20];
    struct test *t = argument;
    ssize_t n;

    while ((n = read(t->rig.xl_in[1][0], block, sizeof(block))) > 0) {
        for (ssize_t i = 0; i < n; i++)
            CHECK(block[i] == stream_byte(t->got + (uint64_t)i));
        t->got += (uint64_t)n;
    }
    close_fd(&t->rig.xl_out[1][1]);
    close_fd(&t->rig.xl_err[1][1]);
    return NULL;
}

static void *serve_pump(void *argument)
{
    struct end *e = argument;
    struct rig *r = e->rig;

    for (;;) {
        int event = xs_pump_run(r->pump[e->side], -1);

        if (event == XS_EV_INPUT_ENDED) {
            close_fd(&r->xl_in[1][1]);
        } else if (event == XS_EV_OUTPUTS_ENDED) {
            CHECK(xs_pump_exit(r->pump[e->side], 0, 7) == XS_OK);
        } else if (event == XS_EV_LANE_LOST) {
            e->lost[e->losses++] = stats_of(r, e->side).lane_lost;
            CHECK(stats_of(r, e->side).lane_socket >= 0);       /* not lanes: the others may be lost too by now */
        } else {
            e->last = event;
            return NULL;
        }
    }
}

/* keepalive_ms, silence_ms: as the pump's; 0 where nothing but what there is to do may wake a thread. */
static void open_timed(struct test *t, uint32_t window, uint64_t total, unsigned lanes, uint32_t keepalive_ms, uint32_t silence_ms)
{
    memset(t, 0, sizeof(*t));
    open_rig(&t->rig, window, keepalive_ms, silence_ms);
    t->rig.socket[0] = t->rig.socket[1] = -1;
    t->total = total;
    CHECK(fcntl(t->rig.xl_in[0][1], F_SETFL, 0) == 0 && fcntl(t->rig.xl_in[1][0], F_SETFL, 0) == 0);
    for (unsigned l = 0; l < XS_LANES_MAX; l++)
        t->wire[l].cut_at = t->wire[l].flip_at = t->wire[l].stop_at = UINT64_MAX;
    while (t->lanes < lanes)
        add_lane(t);
}

static void open_test(struct test *t, uint32_t window, uint64_t total, unsigned lanes)
{
    open_timed(t, window, total, lanes, 100, 10000);
}

static void start_test(struct test *t)
{
    for (int i = 0; i < 2; i++) {
        t->end[i] = (struct end){ .rig = &t->rig, .side = i };
        CHECK(pthread_create(&t->end[i].thread, NULL, serve_pump, &t->end[i]) == 0);
    }
    CHECK(pthread_create(&t->writer, NULL, write_stream, t) == 0);
    CHECK(pthread_create(&t->reader, NULL, read_stream, t) == 0);
}

/* Join one pump and close its ends of the lanes, as Python does. */
static void join_end(struct test *t, int i)
{
    CHECK(pthread_join(t->end[i].thread, NULL) == 0);
    for (unsigned l = 0; l < t->lanes; l++)
        shutdown(t->wire[l].end[i], SHUT_RDWR);
}

/* Wait until all is over, and clear up. Both ends must have said that. */
static void close_test(struct test *t, int last)
{
    join_end(t, 0);
    join_end(t, 1);
    CHECK(t->end[0].last == last && t->end[1].last == last);
    if (last != XS_EV_ENDED)
        close_fd(&t->rig.xl_in[0][0]), close_fd(&t->rig.xl_in[1][1]);
    CHECK(pthread_join(t->writer, NULL) == 0 && pthread_join(t->reader, NULL) == 0);
    if (last == XS_EV_ENDED)
        CHECK(t->got == t->total && stats_of(&t->rig, 0).exit_value == 7 && stats_of(&t->rig, 1).delivered[0] == t->total);
    for (unsigned l = 0; l < t->lanes; l++) {
        CHECK(pthread_join(t->wire[l].thread, NULL) == 0);
        for (int i = 0; i < 2; i++)
            close(t->wire[l].end[i]), close(t->wire[l].middle[i]);
    }
    close_rig(&t->rig);
}

/* Two, four and eight lanes carry a stream of random pieces, within small and large windows. */
static void streams(void)
{
    static const unsigned lanes[] = { 2, 4, 8 };
    static const uint32_t window[] = { 300000, 4 << 20, 64 << 20 };
    struct test t;

    for (int i = 0; i < 3; i++) {
        open_timed(&t, window[i], 40000001, lanes[i], 0, 0);
        start_test(&t);
        close_test(&t, XS_EV_ENDED);
        CHECK(t.end[0].losses == 0 && t.end[1].losses == 0);
    }
}

/* All but one of the lanes are cut, each at its own moment: the stream arrives whole, and each end tells of each loss once. */
static void cuts(void)
{
    uint64_t seed = 77;

    for (int turn = 0; turn < 6; turn++) {
        unsigned lanes = 2 + (unsigned)turn % 4, safe = (unsigned)random_below(&seed, lanes);
        struct test t;
        int cut = 0;

        open_test(&t, turn % 2 == 0 ? 700000 : 16 << 20, 20000003, 0);
        for (unsigned l = 0; l < lanes; l++)
            if (l != safe)
                t.wire[l].cut_at = 1 + random_below(&seed, 3000000);
        while (t.lanes < lanes)
            add_lane(&t);
        start_test(&t);
        close_test(&t, XS_EV_ENDED);
        for (int i = 0; i < 2; i++) {
            cut = cut > t.end[i].losses ? cut : t.end[i].losses;
            CHECK(t.end[i].losses < (int)lanes);
            for (int n = 0; n < t.end[i].losses; n++)
                CHECK(t.end[i].lost[n] == XS_LOST_CLOSED || t.end[i].lost[n] == XS_LOST_RESET);
        }
        CHECK(cut > 0 || turn > 0);
    }
}

/* bwlimit is that of all lanes together; frames that are elided or compressed go over any lane, and again when one is cut. */
static void limited_and_packed(void)
{
    struct timespec from, to;
    struct test t;

    rig_bwlimit = 20 << 20;
    rig_elide = 0;
    (void)clock_gettime(CLOCK_MONOTONIC, &from);
    open_test(&t, 16 << 20, 12 << 20, 4);
    start_test(&t);
    close_test(&t, XS_EV_ENDED);
    (void)clock_gettime(CLOCK_MONOTONIC, &to);
    CHECK((to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000 >= 300);     /* 0.6 s, less a frame of each and a burst */
    rig_bwlimit = 0;
    for (int compress = 0; compress < 2; compress++) {
        rig_elide = !compress;
        rig_compress = compress && xs_zstd_built_in() ? XS_COMPRESS_ZSTD : XS_COMPRESS_OFF;
        open_test(&t, 4 << 20, 20000003, 0);
        t.wire[1].cut_at = 200000;
        while (t.lanes < 4)
            add_lane(&t);
        start_test(&t);
        close_test(&t, XS_EV_ENDED);
    }
    rig_compress = XS_COMPRESS_OFF;
}

/* A byte changed on one lane: that lane is lost for its tag, or its header, and the stream arrives whole over the other. */
static void changed(void)
{
    uint64_t seed = 9;
    int tags = 0;

    for (int turn = 0; turn < 5; turn++) {
        struct test t;

        open_test(&t, 4 << 20, 20000003, 0);
        t.wire[turn % 2].flip_at = random_below(&seed, 100000);
        add_lane(&t), add_lane(&t);
        start_test(&t);
        close_test(&t, XS_EV_ENDED);
        CHECK(t.end[1].losses <= 1 && (t.end[0].losses == 0 || t.end[0].lost[0] != XS_LOST_SILENCE));
        if (t.end[1].losses == 1)
            CHECK(t.end[1].lost[0] == XS_LOST_TAG || t.end[1].lost[0] == XS_LOST_HEADER || t.end[1].lost[0] == XS_LOST_PROTOCOL);
        tags += t.end[1].losses == 1 && t.end[1].lost[0] == XS_LOST_TAG;
    }
    CHECK(tags > 0);
}

/* A lane falls silent and is not lost for that yet: after some seconds the others carry what it had. */
static void silent(void)
{
    struct timespec from, to;
    struct test t;

    (void)clock_gettime(CLOCK_MONOTONIC, &from);
    open_timed(&t, 4 << 20, 20000003, 0, 100, 60000);
    t.wire[1].stop_at = 200000;
    while (t.lanes < 3)
        add_lane(&t);
    start_test(&t);
    close_test(&t, XS_EV_ENDED);
    (void)clock_gettime(CLOCK_MONOTONIC, &to);
    CHECK(to.tv_sec - from.tv_sec < 30 && t.end[0].losses == 0);
}

/* All lanes cut: LOST, as with one, and what reached xl is a beginning of the stream. */
static void all_cut(void)
{
    struct test t;

    open_test(&t, 4 << 20, 400000003, 0);
    for (unsigned l = 0; l < 3; l++)
        t.wire[l].cut_at = 1000000 * (1 + l);
    while (t.lanes < 3)
        add_lane(&t);
    start_test(&t);
    close_test(&t, XS_EV_LOST);
    CHECK(t.got < t.total);
}

/* ABORT in the middle of a stream reaches the other end over whichever lane; a pump is freed with its threads at work. */
static void aborts(void)
{
    struct test t;
    uint8_t text[8];

    open_test(&t, 4 << 20, 400000003, 4);
    CHECK(pthread_create(&t.writer, NULL, write_stream, &t) == 0 && pthread_create(&t.reader, NULL, read_stream, &t) == 0);
    t.end[1] = (struct end){ .rig = &t.rig, .side = 1 };
    CHECK(pthread_create(&t.end[1].thread, NULL, serve_pump, &t.end[1]) == 0);
    CHECK(xs_pump_run(t.rig.pump[0], 50) == XS_EV_TIMEOUT);
    CHECK(xs_pump_abort(t.rig.pump[0], 8, (const uint8_t *)"stopped", 7, 5000) == XS_OK);
    join_end(&t, 1);
    CHECK(t.end[1].last == XS_EV_ABORTED && t.end[1].losses == 0);
    CHECK(xs_pump_text(t.rig.pump[1], text, sizeof(text)) == 7 && memcmp(text, "stopped", 7) == 0);
    CHECK(xs_pump_run(t.rig.pump[0], 0) == XS_EV_LOST && stats_of(&t.rig, 0).lost == XS_LOST_ABORT);
    close_fd(&t.rig.xl_in[0][0]), close_fd(&t.rig.xl_in[1][1]);
    for (unsigned l = 0; l < t.lanes; l++)
        shutdown(t.wire[l].end[0], SHUT_RDWR);
    CHECK(pthread_join(t.writer, NULL) == 0 && pthread_join(t.reader, NULL) == 0);
    for (unsigned l = 0; l < t.lanes; l++)
        CHECK(pthread_join(t.wire[l].thread, NULL) == 0);
    close_rig(&t.rig);
    for (unsigned l = 0; l < t.lanes; l++)
        for (int i = 0; i < 2; i++)
            close(t.wire[l].end[i]), close(t.wire[l].middle[i]);
}

/* Not more than XS_LANES_MAX at once; one that was lost makes room. */
static void most(void)
{
    struct test t;
    struct xs_link *link = lane_link(0, 9);

    open_test(&t, 4 << 20, 3000001, XS_LANES_MAX);
    CHECK(xs_pump_attach(t.rig.pump[0], link, t.wire[0].end[0]) == XS_EARGUMENT && stats_of(&t.rig, 0).lanes == XS_LANES_MAX);
    shutdown(t.wire[3].middle[0], SHUT_RDWR);
    CHECK(xs_pump_run(t.rig.pump[0], -1) == XS_EV_LANE_LOST && stats_of(&t.rig, 0).lane_socket == t.wire[3].end[0]);
    CHECK(stats_of(&t.rig, 0).lanes == XS_LANES_MAX - 1);
    xs_link_free(link);
    start_test(&t);
    close_test(&t, XS_EV_ENDED);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    RUN(streams);
    RUN(cuts);
    RUN(limited_and_packed);
    RUN(changed);
    RUN(silent);
    RUN(all_cut);
    RUN(aborts);
    RUN(most);
    return 0;
}
