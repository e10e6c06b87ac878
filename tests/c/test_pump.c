/* The pump over a socket pair and pipes: both ends in one thread, stepped in turn; and once in processes of their own. */
#define _GNU_SOURCE
#include "rig.h"

#include <limits.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>

/* A few bytes each way, at once, then the ends in their order. */
static void small_talk(void)
{
    struct rig r;

    open_rig(&r, 1 << 20, 0, 0);
    CHECK(xs_pump_run(r.pump[0], 0) == XS_EARGUMENT);
    attach(&r);
    CHECK(xs_pump_attach(r.pump[0], NULL, 3) == XS_EARGUMENT);
    put(r.xl_out[1][1], "banner", 6);
    put(r.xl_err[1][1], "progress", 8);
    settle(&r);
    expect(r.xl_out[0][0], "banner", 6);
    expect(r.xl_err[0][0], "progress", 8);
    put(r.xl_in[0][1], "domain", 6);
    settle(&r);
    expect(r.xl_in[1][0], "domain", 6);
    CHECK(stats_of(&r, 0).delivered[0] == 6 && stats_of(&r, 1).delivered[1] == 6 && stats_of(&r, 1).delivered[2] == 8);
    close_fd(&r.xl_in[0][1]);
    settle(&r);
    CHECK(r.inputs_ended == 1);
    CHECK(read(r.xl_in[1][0], (char[1]){ 0 }, 1) == 0);         /* xl there sees the end */
    put(r.xl_out[1][1], "report", 6);
    settle(&r);
    expect(r.xl_out[0][0], "report", 6);
    finish(&r, 3);
    close_rig(&r);
}

/* The phases of a migration are told on both sides, GO before xl there has it, and the configuration is kept. */
static void phases(void)
{
    static const char json[] = "{\"c_info\": {}}";
    uint8_t head[48 + 4 + sizeof(json)] = "Xen saved domain, xl format\n \0 \r";
    struct rig r;
    uint8_t got[64];

    memcpy(head + 32, (const uint32_t[]){ 0x01020304, 3, 0, 4 + sizeof(json), sizeof(json) }, 20);
    memcpy(head + 52, json, sizeof(json));
    open_rig(&r, 1 << 20, 0, 0);
    attach(&r);
    put(r.xl_out[1][1], "xl migration receiver ready, send binary domain data.\n", 54);
    settle(&r);
    expect(r.xl_out[0][0], "xl migration receiver ready, send binary domain data.\n", 54);
    put(r.xl_in[0][1], (const char *)head, sizeof(head));
    settle(&r);
    expect(r.xl_in[1][0], (const char *)head, sizeof(head));
    for (int i = 0; i < 2; i++)
        CHECK(r.phases[i] == (1U << XS_PHASE_BANNER | 1U << XS_PHASE_HEAD)
              && xs_pump_head(r.pump[i], got, sizeof(got)) == sizeof(json) - 1 && memcmp(got, json, sizeof(json) - 1) == 0
              && xs_pump_head(r.pump[i], NULL, 0) == sizeof(json) - 1);
    put(r.xl_out[1][1], "domain received, ready to unpause", 34);
    CHECK(xs_pump_run(r.pump[1], 0) == XS_EV_PHASE && stats_of(&r, 1).phase == XS_PHASE_READY);
    CHECK(stats_of(&r, 1).channel_bytes[1] == 54);      /* raised before it is sent */
    CHECK(xs_pump_run(r.pump[1], 0) == XS_EV_TIMEOUT);
    CHECK(xs_pump_run(r.pump[0], 0) == XS_EV_PHASE && stats_of(&r, 0).phase == XS_PHASE_READY);
    expect(r.xl_out[0][0], "", 0);                      /* ... and before it is delivered */
    settle(&r);
    put(r.xl_in[0][1], "domain is yours, you are cleared to unpause", 44);
    CHECK(xs_pump_run(r.pump[0], 0) == XS_EV_PHASE && stats_of(&r, 0).phase == XS_PHASE_GO);
    CHECK(xs_pump_run(r.pump[0], 0) == XS_EV_TIMEOUT);
    CHECK(xs_pump_run(r.pump[1], 0) == XS_EV_PHASE && stats_of(&r, 1).phase == XS_PHASE_GO);
    expect(r.xl_in[1][0], "", 0);
    settle(&r);
    expect(r.xl_in[1][0], "domain is yours, you are cleared to unpause", 44);
    put(r.xl_out[1][1], "my copy unpause results are as follows\0", 40);
    settle(&r);
    CHECK(stats_of(&r, 0).report_status == 0 && stats_of(&r, 0).phase == XS_PHASE_REPORT);
    finish(&r, 0);
    close_rig(&r);
}

/* A slow reader of one channel, with a pipe of one page, blocks neither the other channels nor the socket. */
static void slow_reader(void)
{
    static char big[200000], got[4096];
    struct rig r;
    size_t given = 0, taken = 0;
    ssize_t n;

    open_rig(&r, 100000, 0, 0);
    for (int i = 0; i < 2; i++)         /* after xs_pump_new has made them large */
        CHECK(fcntl(r.xl_out[i][0], F_SETPIPE_SZ, 4096) >= 4096 && fcntl(r.xl_in[i][0], F_SETPIPE_SZ, 4096) >= 4096);
    attach(&r);
    for (size_t i = 0; i < sizeof(big); i++)
        big[i] = (char)stream_byte(i);
    while (taken < sizeof(big)) {
        n = write(r.xl_out[1][1], big + given, sizeof(big) - given);
        given += n > 0 ? (size_t)n : 0;
        settle(&r);
        put(r.xl_err[1][1], "e", 1);
        put(r.xl_in[0][1], "i", 1);
        settle(&r);
        expect(r.xl_err[0][0], "e", 1);
        expect(r.xl_in[1][0], "i", 1);
        CHECK(stats_of(&r, 0).channel_bytes[1] - stats_of(&r, 0).delivered[1] <= 100000);
        n = read(r.xl_out[0][0], got, 3000);
        CHECK(n <= 0 || memcmp(got, big + taken, (size_t)n) == 0);
        taken += n > 0 ? (size_t)n : 0;
    }
    finish(&r, 0);
    close_rig(&r);
}

/* xl there has died: what still comes is discarded and acknowledged, and the session ends well. */
static void broken_stdin(void)
{
    static char block[60000];
    struct rig r;

    open_rig(&r, 100000, 0, 0);
    attach(&r);
    close_fd(&r.xl_in[1][0]);
    for (int i = 0; i < 10; i++) {
        put(r.xl_in[0][1], block, sizeof(block));
        settle(&r);
    }
    CHECK(stats_of(&r, 1).sink_broken[0] == 1 && stats_of(&r, 0).delivered[0] == 600000);
    finish(&r, 1);
    CHECK(r.inputs_ended == 0);
    close_rig(&r);
}

/* xl here has closed its standard output: the rest of the session goes on. */
static void broken_stdout(void)
{
    struct rig r;

    open_rig(&r, 100000, 0, 0);
    attach(&r);
    close_fd(&r.xl_out[0][0]);
    put(r.xl_out[1][1], "x", 1);
    put(r.xl_err[1][1], "y", 1);
    settle(&r);
    expect(r.xl_err[0][0], "y", 1);
    CHECK(stats_of(&r, 0).sink_broken[1] == 1 && stats_of(&r, 1).delivered[1] == 1);
    finish(&r, 0);
    close_rig(&r);
}

/* Seal a DATA frame on channel 0 and send its first `part` bytes, with one bit of byte `spoil` flipped if that is >= 0. */
static void send_frame(struct rig *r, const char *text, uint64_t offset, size_t part, int spoil)
{
    const struct xs_header h = { .type = XS_DATA, .length = (uint32_t)strlen(text), .offset = offset };
    uint8_t frame[256];
    size_t len = 32 + strlen(text);

    CHECK(xs_link_seal(r->peer, &h, (const uint8_t *)text, frame) == XS_OK);
    if (spoil >= 0)
        frame[spoil] ^= 0x40;
    CHECK(write(r->socket[0], frame, part < len ? part : len) > 0);
}

/* FIN, reset and damage are told apart; what came whole before them is delivered, and nothing after. */
static void losses(void)
{
    enum { FIN, MIDFRAME, TAG, HEADER, OFFSET, OVER };

    for (int what = FIN; what < OVER; what++) {
        static const int lost[] = { XS_LOST_CLOSED, XS_LOST_CLOSED, XS_LOST_TAG, XS_LOST_HEADER, XS_LOST_PROTOCOL };
        struct rig r;

        half_rig(&r, 0);
        send_frame(&r, "good", 0, 99, -1);
        if (what == MIDFRAME)
            send_frame(&r, "half", 4, 30, -1);
        else if (what == TAG)
            send_frame(&r, "evil", 4, 99, 17);
        else if (what == HEADER)
            send_frame(&r, "evil", 4, 99, 2);
        else if (what == OFFSET)
            send_frame(&r, "evil", 5, 99, -1);
        if (what != FIN && what != MIDFRAME)
            send_frame(&r, "late", 8, 99, -1);
        CHECK(shutdown(r.socket[0], SHUT_WR) == 0);
        CHECK(run(&r, 1, 1000) == XS_EV_LOST);
        CHECK(stats_of(&r, 1).lost == lost[what]);
        expect(r.xl_in[1][0], "good", 4);
        CHECK(run(&r, 1, 10) == XS_EV_TIMEOUT);
        CHECK(r.inputs_ended == 0);     /* a fault is never turned into an end */
        close_rig(&r);
    }
}

/* A reset by the peer: what had come before it is delivered, and the word for it is its own. */
static void reset(void)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof(a);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct rig r;

    open_rig(&r, 1 << 20, 0, 0);
    CHECK(bind(listener, (struct sockaddr *)&a, len) == 0 && listen(listener, 1) == 0
          && getsockname(listener, (struct sockaddr *)&a, &len) == 0);
    r.socket[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(connect(r.socket[0], (struct sockaddr *)&a, len) == 0);
    r.socket[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    CHECK(xs_pump_attach(r.pump[1], link_of(1), r.socket[1]) == XS_OK);
    r.peer = link_of(0);
    send_frame(&r, "good", 0, 99, -1);
    CHECK(run(&r, 1, 20) == XS_EV_TIMEOUT);
    send_frame(&r, "half", 4, 30, -1);
    CHECK(setsockopt(r.socket[0], SOL_SOCKET, SO_LINGER, &(struct linger){ .l_onoff = 1 }, sizeof(struct linger)) == 0);
    close_fd(&r.socket[0]);
    put(r.xl_out[1][1], "unheard", 7);      /* sending may find the reset first */
    CHECK(run(&r, 1, 1000) == XS_EV_LOST);
    CHECK(stats_of(&r, 1).lost == XS_LOST_RESET && stats_of(&r, 1).system_errno != 0);
    expect(r.xl_in[1][0], "good", 4);
    close(listener);
    close_rig(&r);
}

/* Before a reader has taken all that had arrived: LOST is told at once and once, and what had arrived is delivered all the same. */
static void loss_behind_a_full_pipe(void)
{
    static char got[100001];
    struct rig r;
    size_t taken = 0;
    ssize_t n;

    half_rig(&r, 0);
    CHECK(fcntl(r.xl_in[1][0], F_SETPIPE_SZ, 4096) >= 4096);
    for (int i = 0; i < 1000; i++)
        send_frame(&r, "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789",
                   (uint64_t)i * 100, 256, -1), run(&r, 1, 0);
    close_fd(&r.socket[0]);
    CHECK(run(&r, 1, 1000) == XS_EV_LOST && stats_of(&r, 1).delivered[0] < 100000);
    while (taken < 100000) {
        CHECK(run(&r, 1, 0) == XS_EV_TIMEOUT);
        n = read(r.xl_in[1][0], got, 3000);
        CHECK(n > 0);
        taken += (size_t)n;
    }
    CHECK(stats_of(&r, 1).delivered[0] == 100000 && r.inputs_ended == 0);
    close_rig(&r);
}

/* Without a link xl is heard up to its window, and no further: nothing of what it says is thrown away. Behind an ABORT it is: an xl that says more than its
 * window and pipe hold before it reads on is not left standing, for what it says has no reader any more. */
static void talk_after(int aborted)
{
    static const struct xs_header abort_header = { .type = XS_ABORT, .length = 2 };
    static char block[65536];
    struct rig r;
    struct xs_link *link;
    size_t said = 0;

    half_rig(&r, 0);
    CHECK(fcntl(r.xl_in[1][0], F_SETPIPE_SZ, 4096) >= 4096);
    memset(block, 'a', sizeof(block));
    for (int i = 0; i < 50; i++)
        send_frame(&r, "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789",
                   (uint64_t)i * 100, 256, -1), run(&r, 1, 0);
    if (aborted) {
        uint8_t frame[XS_HEADER_LEN + 2 + XS_TAG_LEN];

        CHECK(xs_link_seal(r.peer, &abort_header, (const uint8_t *)"\0\10", frame) == XS_OK);
        put(r.socket[0], (const char *)frame, sizeof(frame));
    }
    CHECK(shutdown(r.socket[0], SHUT_WR) == 0);
    for (int turn = 0; turn < 1000 && said < (size_t)4 << 20; turn++) {
        ssize_t n = write(r.xl_err[1][1], block, sizeof(block));

        if (n > 0)
            said += (size_t)n;
        CHECK(run(&r, 1, 0) == (!aborted && turn == 0 ? XS_EV_LOST : XS_EV_TIMEOUT));
    }
    CHECK((said >= (size_t)4 << 20) == aborted);
    while (read(r.xl_in[1][0], block, sizeof(block)) > 0)
        run(&r, 1, 0);
    CHECK(run(&r, 1, 10) == (aborted ? XS_EV_ABORTED : XS_EV_TIMEOUT) && stats_of(&r, 1).delivered[0] == 5000);
    link = link_of(1);
    CHECK(xs_pump_attach(r.pump[1], link, r.socket[1]) == (aborted ? XS_EARGUMENT : XS_OK));
    if (aborted)
        xs_link_free(link);
    close_rig(&r);
}

static void talkative_after_loss(void)
{
    talk_after(0);
    talk_after(1);
}

/* A link that was dropped because the peer has made another is no news, and the session goes on over that. */
static void dropped(void)
{
    struct rig r;

    open_rig(&r, 1 << 20, 0, 0);
    CHECK(xs_pump_drop(r.pump[1]) == XS_EARGUMENT);
    attach(&r);
    put(r.xl_in[0][1], "one ", 4);
    settle(&r);
    CHECK(xs_pump_drop(r.pump[1]) == XS_OK && stats_of(&r, 1).lost == XS_LOST_REPLACED);
    CHECK(run(&r, 1, 0) == XS_EV_TIMEOUT && run(&r, 0, 0) == XS_EV_TIMEOUT);
    put(r.xl_in[0][1], "two", 3);
    close_fd(&r.socket[1]);
    CHECK(run(&r, 0, 1000) == XS_EV_LOST);
    close_fd(&r.socket[0]);
    attach(&r);
    settle(&r);
    expect(r.xl_in[1][0], "one two", 7);
    finish(&r, 0);
    CHECK(xs_pump_drop(r.pump[1]) == XS_EARGUMENT);
    close_rig(&r);
}

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* F10: silence ends a link; KEEPALIVE alone holds it, and is not sent more often than it has to be. */
static void silence(void)
{
    struct rig r;
    int64_t start = now_ms();

    half_rig(&r, 150);
    CHECK(run(&r, 1, 10) == XS_EV_TIMEOUT);
    CHECK(run(&r, 1, 5000) == XS_EV_LOST && stats_of(&r, 1).lost == XS_LOST_SILENCE);
    CHECK(now_ms() - start >= 150 && now_ms() - start < 3000);
    close_rig(&r);

    open_rig(&r, 1 << 20, 40, 400);
    attach(&r);
    for (start = now_ms(); now_ms() - start < 1000;) {
        CHECK(run(&r, 0, 10) == XS_EV_TIMEOUT);
        CHECK(run(&r, 1, 10) == XS_EV_TIMEOUT);
    }
    CHECK(stats_of(&r, 0).frames_sent >= 5 && stats_of(&r, 0).frames_sent <= 1100 / 40);
    close_rig(&r);
}

/* ABORT reaches the peer with its reason and text, behind what was on its way. */
static void aborts(void)
{
    struct rig r;
    uint8_t text[32];

    open_rig(&r, 1 << 20, 0, 0);
    attach(&r);
    put(r.xl_in[0][1], "domain", 6);
    run(&r, 0, 0);      /* reads */
    run(&r, 0, 0);      /* and sends: ABORT would go before what is not sent yet */
    CHECK(xs_pump_abort(r.pump[0], 8, (const uint8_t *)"stopped", 7, 50) == XS_OK);
    CHECK(run(&r, 1, 1000) == XS_EV_ABORTED && run(&r, 1, 1000) == XS_EV_ABORTED);
    expect(r.xl_in[1][0], "domain", 6);
    CHECK(stats_of(&r, 1).reason == 8 && xs_pump_text(r.pump[1], text, sizeof(text)) == 7 && memcmp(text, "stopped", 7) == 0);
    CHECK(run(&r, 0, 1000) == XS_EV_LOST && stats_of(&r, 0).lost == XS_LOST_ABORT);
    CHECK(xs_pump_abort(r.pump[0], 8, NULL, 0, 50) == XS_EARGUMENT);
    close_rig(&r);
}

static void on_alarm(int number)
{
    (void)number;
}

/* wake_fd brings the caller back; so does a signal. */
static void wakes(void)
{
    int wake[2];
    struct xs_pump_options o = { .role = XS_SOURCE, .channel_fd = { -1, -1, -1 }, .send_window = { 1000 } };
    struct xs_pump *p;
    int s[2];

    CHECK(pipe(wake) == 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, s) == 0);
    o.wake_fd = wake[0];
    p = xs_pump_new(&o);
    CHECK(xs_pump_attach(p, link_of(0), s[0]) == XS_OK);
    CHECK(xs_pump_run(p, 1) == XS_EV_TIMEOUT);
    put(wake[1], "!", 1);
    CHECK(xs_pump_run(p, 10000) == XS_EV_WOKEN && xs_pump_run(p, -1) == XS_EV_WOKEN);
    CHECK(read(wake[0], (char[1]){ 0 }, 1) == 1);
    signal(SIGALRM, on_alarm);
    CHECK(setitimer(ITIMER_REAL, &(struct itimerval){ .it_value = { .tv_usec = 50000 } }, NULL) == 0);
    CHECK(xs_pump_run(p, -1) == XS_EV_WOKEN);
    xs_pump_free(p);
    close(wake[0]), close(wake[1]), close(s[0]), close(s[1]);
}

/* A lost link, and another in its place: every byte comes once. */
static void second_link(void)
{
    struct rig r;

    open_rig(&r, 1 << 20, 0, 0);
    attach(&r);
    put(r.xl_in[0][1], "one ", 4);
    settle(&r);
    expect(r.xl_in[1][0], "one ", 4);
    put(r.xl_in[0][1], "two ", 4);
    put(r.xl_out[1][1], "back", 4);
    run(&r, 0, 0);      /* reads */
    run(&r, 0, 0);      /* and sends */
    CHECK(shutdown(r.socket[0], SHUT_RDWR) == 0);
    put(r.xl_in[0][1], "three", 5);
    settle(&r);
    CHECK(r.last[0] == XS_EV_LOST && r.last[1] == XS_EV_LOST);
    CHECK(stats_of(&r, 0).channel_bytes[0] == 8 && stats_of(&r, 0).taken[0] == 13);       /* S1, S8: read, and sent later */
    close_fd(&r.socket[0]), close_fd(&r.socket[1]);
    attach(&r);
    settle(&r);
    expect(r.xl_in[1][0], "two three", 9);
    expect(r.xl_out[0][0], "back", 4);
    CHECK(stats_of(&r, 0).delivered[0] == 13 && stats_of(&r, 1).delivered[1] == 4);
    finish(&r, 0);
    close_rig(&r);
}

/* xl there is gone but its standard output is held open by another: the owner ends it. */
static void ends_by_hand(void)
{
    struct rig r;

    open_rig(&r, 1 << 20, 0, 0);
    attach(&r);
    settle(&r);
    CHECK(xs_pump_end_input(r.pump[1], 0) == XS_EARGUMENT && xs_pump_end_input(r.pump[1], 3) == XS_EARGUMENT);
    CHECK(xs_pump_end_input(r.pump[1], 1) == XS_OK && xs_pump_end_input(r.pump[1], 2) == XS_OK);
    finish(&r, 0);
    close_rig(&r);
}

/* A read that fails is a fault, not the input's end. */
static void read_fault(void)
{
    struct rig r;
    int folder = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    open_rig(&r, 1 << 20, 0, 0);
    CHECK(dup2(folder, r.xl_in[0][0]) >= 0);    /* read says EISDIR */
    attach(&r);
    CHECK(xs_pump_run(r.pump[0], 1000) == XS_ESYSTEM && stats_of(&r, 0).system_errno == EISDIR);
    close(folder);
    close_rig(&r);
}

/* After EXIT the destination gives up on a source that does not close, and takes its reset for what it is. */
static void after_exit(void)
{
    struct rig r;
    int64_t start;

    half_rig(&r, 0);
    close_fd(&r.xl_out[1][1]), close_fd(&r.xl_err[1][1]);
    CHECK(run(&r, 1, 0) == XS_EV_TIMEOUT && r.outputs_ended == 1);
    CHECK(xs_pump_exit(r.pump[1], 2, 0) == XS_OK);
    start = now_ms();
    send_frame(&r, "late", 0, 99, -1);
    CHECK(run(&r, 1, 20000) == XS_EV_ENDED);
    CHECK(now_ms() - start >= 5000 && now_ms() - start < 9000);
    close_rig(&r);
}

/* Feed or drain a pipe in random pieces, in a process of its own; sum is kept by position, so that order is checked too. */
static void child_writer(int fd, uint64_t total, uint64_t seed)
{
    static uint8_t block[1 << 20];

    for (uint64_t done = 0; done < total;) {
        size_t len = 1 + random_below(&seed, random_below(&seed, 4) == 0 ? sizeof(block) : 5000);

        len = len < total - done ? len : (size_t)(total - done);
        for (size_t i = 0; i < len; i++)
            block[i] = stream_byte(done + i);
        for (size_t at = 0; at < len;) {
            ssize_t n = write(fd, block + at, len - at);

            CHECK(n > 0);
            at += (size_t)n;
        }
        done += len;
    }
    _exit(0);
}

static void run_to_end(struct rig *r, int i, int value)
{
    for (;;) {
        int event = xs_pump_run(r->pump[i], 1000);

        if (event == XS_EV_INPUT_ENDED)
            close_fd(&r->xl_in[1][1]);
        else if (event == XS_EV_OUTPUTS_ENDED)
            CHECK(xs_pump_exit(r->pump[i], 0, value) == XS_OK);
        else if (event != XS_EV_TIMEOUT && event != XS_EV_WOKEN && event != XS_EV_PHASE) {
            CHECK(event == XS_EV_ENDED);
            _exit(0);
        }
    }
}

/* Three processes and 64 MB in random pieces, with a reader that stops now and then. */
static void processes(void)
{
    const uint64_t total = 64000001;
    static uint8_t block[1 << 20];
    uint64_t seed = 9, done = 0;
    struct rig r;
    pid_t pid[3];
    int status;
    ssize_t n;

    open_rig(&r, 4 << 20, 100, 5000);
    attach(&r);
    CHECK(fcntl(r.xl_in[0][1], F_SETFL, 0) == 0 && fcntl(r.xl_in[1][0], F_SETFL, 0) == 0);
    for (int i = 0; i < 3; i++) {
        pid[i] = fork();
        CHECK(pid[i] >= 0);
        if (pid[i] != 0)
            continue;
        if (i < 2)
            close_fd(&r.socket[1 - i]);
        if (i != 2)
            close_fd(&r.xl_in[0][1]);
        if (i != 1)
            close_fd(&r.xl_in[1][1]);
        close_fd(&r.xl_out[1][1]), close_fd(&r.xl_err[1][1]);
        if (i == 2)
            child_writer(r.xl_in[0][1], total, 5);
        run_to_end(&r, i, 7);
    }
    close_fd(&r.socket[0]), close_fd(&r.socket[1]), close_fd(&r.xl_in[0][1]), close_fd(&r.xl_in[1][1]);
    while ((n = read(r.xl_in[1][0], block, 1 + random_below(&seed, sizeof(block)))) > 0) {
        for (ssize_t i = 0; i < n; i++)
            CHECK(block[i] == stream_byte(done + (uint64_t)i));
        done += (uint64_t)n;
        if (random_below(&seed, 50) == 0)
            CHECK(poll(NULL, 0, 20) == 0);
    }
    CHECK(n == 0 && done == total);
    close_fd(&r.xl_out[1][1]), close_fd(&r.xl_err[1][1]);
    for (int i = 0; i < 3; i++)
        CHECK(waitpid(pid[i], &status, 0) == pid[i] && status == 0);
    close_rig(&r);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    RUN(small_talk);
    RUN(phases);
    RUN(slow_reader);
    RUN(broken_stdin);
    RUN(broken_stdout);
    RUN(losses);
    RUN(reset);
    RUN(loss_behind_a_full_pipe);
    RUN(talkative_after_loss);
    RUN(dropped);
    RUN(silence);
    RUN(aborts);
    RUN(wakes);
    RUN(second_link);
    RUN(ends_by_hand);
    RUN(read_fault);
    RUN(after_exit);
    RUN(processes);
    return 0;
}
